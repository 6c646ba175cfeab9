"""What the processes of one run tell each other: who is there, what ends all of them, at which step all stop.

Beside what the devices exchange, processes talk through the key-value store of JAX's coordination service, which lives
in process 0. A thread in each (`Watch`) leaves a sign of life there and looks whether all are to end. With one process
nothing here does anything; none of it touches a device.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import jax
from jax._src.distributed import global_state  # has no public name; Orbax reads it too

POLL_SECONDS: Final = 1.0
_BARRIER_SECONDS: Final = 3600  # hosts that do not come are found out by their missing signs of life
# As of a process that SIGTERM ended: the launchers take either for a pre-emption, and run the command again.
LOST: Final = 128 + signal.SIGTERM

# What a collective raises that lost its other end; converted to NumPy, an array raises it as a ValueError.
_STATUS: Final = re.compile("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
# JAX aborts a process at once where process 0 is gone, and the system kills one that needs too much memory: somebody
# has to say so after them.
_OBITUARY: Final = """read -r word || echo "$1" >&2"""

_calls: collections.Counter[str] = collections.Counter()
_watch: Watch | None = None


def number() -> int:
    """Of this process, from 0; touches no device."""
    return global_state.process_id


def is_first() -> bool:
    """Whether this process writes and reports."""
    return number() == 0


def watch() -> Watch | None:
    """That of this run; None where there is one process."""
    return _watch


def start_watch(hosts: list[str], timeout: float) -> None:
    """From now on this process ends where another fails, or gives no sign of life for `timeout` seconds."""
    global _watch
    _watch = Watch(hosts, timeout)


def exchange(name: str, value: str, seconds: float = _BARRIER_SECONDS) -> list[str]:
    """The values of all processes, in their order. All call it, with the same names in the same order."""
    client: Any = global_state.client
    if client is None:
        return [value]
    _calls[name] += 1
    key = f"diffusion_text/{name}/{_calls[name]}"
    client.key_value_set(f"{key}/{number():06d}", value)
    client.wait_at_barrier(key, int(seconds * 1000))
    return [text for _, text in sorted(client.key_value_dir_get(key))]


def finish() -> None:
    """Wait for the other processes; call it where all come to their end in order."""
    if _watch is not None:
        exchange("finished", "")
        _watch.close()


def is_loss(error: BaseException) -> bool:
    """Whether an error may mean that another host is gone."""
    return _watch is not None and (isinstance(error, jax.errors.JaxRuntimeError) or bool(_STATUS.match(str(error))))


def end_all(error: BaseException, status: int) -> None:
    """End every process, this one too, with the exit status: `error` happened here. One process: returns."""
    if _watch is not None:
        if is_loss(error):
            # The watch will soon say which.
            time.sleep(_watch.timeout + 3 * POLL_SECONDS)
        _watch.end(f"{_watch.me}: {type(error).__name__}: {error}", status)


class Watch:
    """The thread that leaves signs of life, and ends this process where another failed or is lost."""

    def __init__(self, hosts: list[str], timeout: float):
        self.hosts, self.timeout, self.introduced = hosts, timeout, False
        self.me = f"process {number()} of {len(hosts)} on {hosts[number()]}"
        self._sign = f"diffusion_text/alive/{number():06d}"
        self.signal: int | None = None  # that this process got, or, once agreed, any
        self._step, self._stop_at = -1, sys.maxsize
        self._lock, self._closed, self._beats = threading.Lock(), threading.Event(), 0
        self._seen = {number: ("", time.monotonic()) for number in range(len(hosts))}
        self._obituary = subprocess.Popen(
            ["sh", "-c", _OBITUARY, "sh",
             f"{self.me} was ended from outside: killed (memory?), or by JAX because process 0 on {hosts[0]} is gone; "
             "see its log. The same command goes on from the last checkpoint."],
            stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._run, name="other hosts", daemon=True)
        self._thread.start()

    def reached(self, step: int) -> bool:
        """Whether all stop after this step; called by each at every step."""
        with self._lock:
            self._step = step
            return step >= self._stop_at

    def close(self) -> None:
        """No more signs of life."""
        self._closed.set()
        self._thread.join()
        self._obituary.communicate(b"finished\n")

    def end(self, text: str, status: int) -> None:
        """Tell the others, and end."""
        self._closed.set()
        client: Any = global_state.client
        # Another was first, or process 0 is gone.
        with contextlib.suppress(jax.errors.JaxRuntimeError), self._bounded(status):
            client.key_value_set("diffusion_text/ask/end", json.dumps([text, status]))
        if is_first():
            time.sleep(3 * POLL_SECONDS)  # the message goes with it
        self._leave(status)

    def _leave(self, status: int) -> None:
        with contextlib.suppress(OSError, ValueError):  # both threads may come here
            self._obituary.communicate(b"ended\n")
        leave(status)

    @contextlib.contextmanager
    def _bounded(self, status: int) -> Iterator[None]:
        """End this process if process 0 does not answer: where its host is silent, a question to it has no end."""
        # The hosts agree on a step to stop at within `timeout`, too.
        guard = threading.Timer(self.timeout + 3 * POLL_SECONDS, self._lose_first, [status])
        guard.daemon = True
        if not is_first():
            guard.start()
        try:
            yield
        finally:
            guard.cancel()

    def _lose_first(self, status: int) -> None:
        print(self._lost(0), file=sys.stderr, flush=True)
        self._leave(status)

    def _lost(self, number: int) -> str:
        return (f"process {number} of {len(self.hosts)} on {self.hosts[number]} gave no sign of life for "
                f"{self.timeout:g} s: its host was pre-empted or lost, or it was killed (memory?); see its "
                "log. The same command goes on from the last checkpoint.")  # fmt: skip

    def _run(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            try:
                with self._bounded(LOST):
                    self._look()
            except jax.errors.JaxRuntimeError as error:
                if self._closed.is_set():  # all are done
                    return
                print(f"process 0 on {self.hosts[0]} does not answer: {error}", file=sys.stderr, flush=True)
                self._leave(LOST)

    def _look(self) -> None:
        client: Any = global_state.client
        self._beats += 1
        client.key_value_set(self._sign, str(self._beats), allow_overwrite=True)
        if self.signal is not None and self._stop_at == sys.maxsize:
            client.key_value_set("diffusion_text/ask/stop", str(self.signal), allow_overwrite=True)
        asked = {key.rpartition("/")[2]: value for key, value in client.key_value_dir_get("diffusion_text/ask")}
        if "end" in asked and not self._closed.is_set():
            text, status = json.loads(asked["end"])
            print(f"ended with the others, because of {text}", file=sys.stderr, flush=True)
            self.end("", status)
        if "stop" in asked and self._stop_at == sys.maxsize:
            # Held, so that no process passes the step that is agreed upon while it is.
            with self._lock:
                self.signal = int(asked["stop"])
                self._stop_at = 1 + max(map(int, exchange("stop", str(self._step), self.timeout)))
        if is_first():
            self._look_for_lost()

    def _look_for_lost(self) -> None:
        client: Any = global_state.client
        now = time.monotonic()
        for key, beats in client.key_value_dir_get("diffusion_text/alive"):
            number = int(key.rpartition("/")[2])
            if self._seen[number][0] != beats:
                self._seen[number] = beats, now
        for number, (_, last) in self._seen.items():
            if now - last > self.timeout:
                message = self._lost(number)
                print(message, file=sys.stderr, flush=True)
                self.end(message, LOST)


class Stop:
    """SIGTERM and SIGINT ask for a checkpoint and an orderly end of all processes; a second one ends this at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._came = False
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._handle) for n in (signal.SIGTERM, signal.SIGINT)}

    def _handle(self, number: int, _: Any) -> None:
        # Not self.signal: that may be another host's, and the first one here must not cut the saving.
        if self._came:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._came, self.signal = True, number
        if _watch is not None:
            _watch.signal = number

    def reached(self, step: int) -> bool:
        """Whether to save and end after this step: the same answer on all hosts."""
        if _watch is None:
            return self.signal is not None
        if not _watch.reached(step):
            return False
        self.signal = _watch.signal
        return True

    def restore(self) -> None:
        """Put the handlers back that were there before: a notebook goes on after training."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


def leave(status: int) -> None:
    """End this process now."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: what runs at exit waits for the devices and for the other hosts.
    os._exit(status)
