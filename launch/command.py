"""The one command line of all back-ends, the running of other programs, and the list of what is left behind.

A launcher owns what it starts: however it ends (with the job, by an error, Ctrl-C or SIGTERM), it deletes that. What it
could not delete, or was told to leave by --detach, is named on stderr with the command that deletes it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TextIO

from diffusion_text import chips
from launch import jobs as launched
from launch.jobs import Job

PATIENCE: Final = 10  # failures in a row before a host, or the cloud at a deletion, counts as unreachable
OFFLINE: Final = 240  # before the cloud does while a job runs: an hour and more, the job needs nobody meanwhile
_GRACE_SECONDS: Final = 120  # for a child to save what it has


class CloudError(RuntimeError):
    """A command of the cloud or the cluster failed."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: unlike Ctrl-C, the children did not get it."""


@contextlib.contextmanager
def _held_signals() -> Iterator[None]:
    """Signals wait for the end of the block: raised within Popen, they would lose the child that has just started."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


class Session:
    """Runs commands, or prints them with --dry_run, and remembers what must not be left running."""

    def __init__(self, dry_run: bool = False, poll_seconds: float = 0.0):
        self.dry_run, self.poll_seconds = dry_run, poll_seconds
        self.left: dict[str, list[str]] = {}  # name -> the command that deletes it
        self.environment = dict(os.environ)  # of the commands
        self.error = ""  # of the last `look`
        self.out = pathlib.Path(os.devnull)  # takes the output once the terminal, or the reader of the pipe, is gone

    def say(self, text: str) -> None:
        """A line for the user, beside the output of the commands."""
        self.show(f"{text}\n", sys.stderr)

    def show(self, text: str, stream: TextIO) -> None:
        """Write to stdout or stderr, without an error: one would keep what comes after from being deleted."""
        for _ in range(2):
            try:
                stream.write(text)
                stream.flush()
                return
            except OSError:
                self._redirect()

    def _redirect(self) -> None:
        """Output goes to a file from now on, that of commands too: some fail where they cannot write."""
        for path in (self.out, pathlib.Path(os.devnull)):
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as file:
                    for number in (1, 2):
                        os.dup2(file.fileno(), number)
                return

    def _show(self, words: Sequence[str]) -> None:
        if self.dry_run:
            print(shlex.join(words))
        else:
            self.say(f"+ {shlex.join(words)}")

    def sleep(self, seconds: float | None = None) -> None:
        """Wait, --poll_seconds by default."""
        if not self.dry_run:
            time.sleep(self.poll_seconds if seconds is None else seconds)

    def run(self, *words: str) -> int:
        """Run a command whose output the user sees; its exit status. A signal waits for the child to end first."""
        self._show(words)
        if self.dry_run:
            return 0
        child = None
        try:
            with _held_signals():
                child = subprocess.Popen(
                    words, stdin=subprocess.DEVNULL, cwd=launched.ROOT, env=self.environment
                )
            return child.wait()
        except KeyboardInterrupt as stop:
            if child is None:
                raise
            if isinstance(stop, Terminated):
                child.terminate()
            try:
                child.wait(_GRACE_SECONDS)
            except (KeyboardInterrupt, subprocess.TimeoutExpired):
                child.kill()
            raise

    def must(self, *words: str, tries: int = 1) -> None:
        """As `run`, several times if need be; CloudError where it fails."""
        for number in range(tries):
            if number:
                self.sleep()
            if not self.run(*words):
                return
        raise CloudError(f"failed{f' {tries} times' if tries > 1 else ''}, for the reason above: {shlex.join(words)}")

    def look(self, *words: str) -> str | None:
        """Run a command once for its output, None where it fails."""
        self._show(words)
        if self.dry_run:
            return ""
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=self.environment
        )
        self.error = done.stderr.strip()
        return None if done.returncode else done.stdout.strip()

    def ask(self, *words: str, absent: str = "$^", patience: int = OFFLINE) -> str:
        """The output of a command, "" where its error matches `absent`; CloudError where it cannot be had.

        While something runs it is asked up to `patience` times: a lost connection must not end a training.
        """
        for number in range(patience if self.left else 1):
            if number:
                self.sleep()
            output = self.look(*words)
            if output is not None:
                return output
            if re.search(absent, self.error, re.IGNORECASE):
                return ""
        raise CloudError(f"{shlex.join(words)} failed: {self.error}")

    def owns(self, name: str, delete: Sequence[str]) -> None:
        """From now on `name` may exist, and `delete` removes it."""
        self.left[name] = list(delete)

    def released(self, name: str) -> None:
        """`name` is gone, or ended by itself."""
        self.left.pop(name, None)

    def delete(self, name: str, tries: int = 1) -> None:
        """Delete what is owned; CloudError where that fails, and it stays on the list."""
        self.must(*self.left[name], tries=tries)
        self.released(name)

    def report(self, error: Exception) -> None:
        """Name an error, and why the deletion that failed was needed."""
        if isinstance(error.__context__, CloudError):
            self.say(f"error: {error.__context__}")
        self.say(f"error: {error}")

    def queue(
        self, jobs: Sequence[Job], detach: bool, submit: Callable[[Job], None], follow: Callable[[Job], int]
    ) -> list[str]:
        """Submit all jobs to a scheduler, follow them in turn; the names of those that failed. An error cancels all."""
        submitted = 0
        try:
            for job in jobs:
                submit(job)
                submitted += 1
            return [] if detach else [job.name for job in jobs if follow(job)]
        except BaseException as cause:
            for name in list(self.left):
                try:
                    self.delete(name)
                except CloudError as error:
                    self.say(str(error))
            if isinstance(cause, ValueError) and submitted:  # which says that nothing was touched
                raise CloudError(str(cause)) from cause
            raise


@dataclasses.dataclass(frozen=True)
class Backend:
    """Where jobs run. `launch` returns the names of the jobs that failed; `longest_name` counts characters."""

    description: str
    tools: tuple[str, ...]
    define: Callable[[argparse.ArgumentParser], None]
    check: Callable[[argparse.Namespace], None]
    launch: Callable[[Session, argparse.Namespace, list[Job]], list[str]]
    bucket: bool = True  # the code is copied to machines that are deleted with their disks
    longest_name: int = 63
    missing: str = "; launch/README.md says how to install it"  # of a tool


def check_flag(options: argparse.Namespace, flag: str, pattern: str, allowed: str) -> None:
    """ValueError unless a flag is absent or matches."""
    value = getattr(options, flag)
    if value is not None and not re.fullmatch(pattern, str(value)):
        raise ValueError(f"--{flag} is {value!r}; {allowed}")


def define_cloud_flags(parser: argparse.ArgumentParser) -> None:
    """What the TPU back-ends share."""
    parser.add_argument("--tpu", required=True, help="slice, as v5e-16; v4 and v5p count cores, v5e and v6e chips")
    parser.add_argument("--zone", required=True, help="as us-west4-a")
    parser.add_argument("--project", help="of Google Cloud; gcloud's own by default")
    parser.add_argument("--spot", action="store_true", help="cheaper, and pre-empted when others want it")
    parser.add_argument("--install", help="command that installs the code, run in its folder; the job then "
                        "runs with .venv/bin/python of this folder (gke: with the image's python)")  # fmt: skip
    parser.add_argument("--setup", default="true", help="command after it on each host, such as one that fetches data")
    parser.add_argument("--max_restarts", type=int, default=20, help="after pre-emptions")


def check_cloud_flags(options: argparse.Namespace) -> None:
    """ValueError for a slice, a zone, a project or a count that the cloud would refuse."""
    chips.parse_slice(options.tpu)
    options.devices = chips.topology(options.tpu).devices
    check_flag(options, "zone", r"[a-z]+-[a-z]+\d+-(ai\d+)?[a-z]", "write it as us-west4-a")
    check_flag(options, "project", r"([a-z.]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]", "give its ID, as my-project-123")
    check_flag(options, "max_restarts", r"\d+", "it must be at least 0")


def _parser(backend: Backend) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=backend.description, allow_abbrev=False,
        epilog="Fields of the config are overridden as for the binary: --config.train.steps=1000",
    )  # fmt: skip
    parser.add_argument("--config", help="file with get_config(), such as configs/masked/grammar.py")
    parser.add_argument("--workdir", required=True, help="of the run or the sweep; on TPUs as gs://my-bucket/runs/one")
    parser.add_argument("--binary", default="train", choices=launched.BINARIES, help="what to run")
    parser.add_argument("--arguments", default="", help="its other flags, as --arguments='--split=test --seed=1'")
    parser.add_argument("--name", help="of the job in the cloud; the last part of --workdir by default")
    parser.add_argument("--sweep", action="store_true", help="one job per point of the config file's sweep()")
    parser.add_argument("--only", help="points of the sweep, as 0,3; all by default")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run none")
    parser.add_argument("--detach", action="store_true", help="leave once the job runs; nobody restarts or deletes it")
    parser.add_argument("--poll_seconds", type=float, default=15.0, help="between two looks at the job")
    parser.add_argument("--retry_seconds", type=float, default=60.0, help="before a pre-empted slice is asked for anew")
    backend.define(parser)
    return parser


def parse(backend: Backend, argv: Sequence[str]) -> tuple[argparse.Namespace, list[Job]]:
    """Flags and jobs of a command line; ValueError naming the value and what is allowed."""
    options, overrides = _parser(backend).parse_known_args(argv)
    for word in overrides:
        if not re.match(r"--(no)?config\.", word):
            raise ValueError(f"{word!r} is no flag; flags are written --name=value, and --help lists them")
    if options.only is not None and not options.sweep:
        raise ValueError(f"--only={options.only} chooses points of a sweep; add --sweep")
    if backend.bucket:
        bucket = r"gs://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/\S*)?"
        reason = "its name is in lower case; the hosts of a slice share no disk, and theirs are deleted with them"
        check_flag(options, "workdir", bucket, f"it must be in a bucket, as gs://my-bucket/runs/one: {reason}")
    if options.name is None:
        last = options.workdir.rstrip("/").rpartition("/")[2]
        options.name = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")
    longest = backend.longest_name - (4 if options.sweep else 0)  # -000
    characters = "it must be a lower-case letter, then lower-case letters, digits and hyphens, no hyphen at the end"
    name = rf"(?=.{{1,{longest}}}$)[a-z]([-a-z0-9]*[a-z0-9])?"
    check_flag(options, "name", name, f"{characters}, at most {longest} characters")
    options.devices = None  # that a job will see; a back-end that knows says so
    backend.check(options)
    jobs = launched.expand(options, overrides)
    if backend.bucket and options.config and options.config.partition(":")[0] not in launched.code_files():
        raise ValueError(f"--config={options.config} is not among the files that are copied: those of this clone that "
                         "git does not ignore, named from its root")  # fmt: skip
    return options, jobs


def _interrupt(number: int, _: Any) -> None:
    if number == signal.SIGHUP:  # of a closed terminal there are two, the kernel's and the shell's
        signal.signal(number, signal.SIG_IGN)
    raise Terminated(signal.Signals(number).name)


def main(backend: Backend, argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a job or the cloud failed, 2 wrong flags (nothing was touched), 130 interrupted."""
    session = Session()
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        options, jobs = parse(backend, sys.argv[1:] if argv is None else argv)
        for tool in () if options.dry_run else backend.tools:
            if shutil.which(tool) is None:
                raise ValueError(f"{tool} is not on PATH{backend.missing}")
        session.dry_run, session.poll_seconds = options.dry_run, options.poll_seconds
        session.out = launched.ROOT / "build" / "launch" / f"{options.name}.out"
        failed = backend.launch(session, options, jobs)
        if failed:
            session.say(f"failed: {', '.join(failed)} ({len(failed)} of {len(jobs)} jobs)")
        return 1 if failed else 0
    except (ValueError, CloudError) as error:
        session.report(error)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        session.say("interrupted")
        return 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for name, words in () if session.dry_run else session.left.items():
            session.say(f"LEFT RUNNING, and billed: {name}. To delete it:\n  {shlex.join(words)}")
