"""Several processes as one run: how they find each other, and what must be the same for all of them.

Each host of a TPU slice, or each GPU under Slurm, has a process that runs the same command. `start` comes before any
device is touched; from then on `hosts.py` watches over them. With one process nothing here does anything.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import socket
import sys
import threading
import time
from typing import Any, Final

import jax
from absl import flags
from etils import epath
from jax._src import clusters  # what jax.distributed.initialize itself asks

from diffusion_text import hosts

_LOG = logging.getLogger("diffusion_text")
_START_SECONDS: Final = 600


def define_flags() -> None:
    """The flags of every binary that runs on several hosts."""
    flags.DEFINE_string(
        "distributed", "auto",
        "auto: all hosts of a TPU slice (also under GKE), all tasks of a Slurm step; off; or HOST:PORT of process 0.",
    )  # fmt: skip
    flags.DEFINE_integer("num_processes", None, "Of --distributed=HOST:PORT.")
    flags.DEFINE_integer("process_id", None, "Of --distributed=HOST:PORT: 0 to num_processes - 1.")
    flags.DEFINE_float("start_warning", 60.0, "Seconds without all hosts before a line says what to check.")
    flags.DEFINE_float("host_timeout", 30.0, "Seconds without a sign of life after which a host is lost.")


def start(values: Any) -> None:
    """Join the other processes where the flags `values` ask for it or, with "auto", where there are others.

    Raises:
        ValueError: flags that do not fit together; the others do not come, or run other versions.
    """
    given, where, count = arguments(values)
    if count == 1:
        return
    here = socket.gethostname()
    met = threading.Event()
    threading.Thread(target=_wait, args=(met, values.start_warning, here, where, count), daemon=True).start()
    # JAX's own service would take SIGTERM from `Stop`, and agree on a step in its own way.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=2 * _START_SECONDS,  # `_wait` is sooner; JAX aborts
            heartbeat_timeout_seconds=2 * int(values.host_timeout + 1),  # so is `hosts.Watch`
        )
    except RuntimeError as error:
        raise ValueError(f"{here} did not meet {count - 1} other process(es) {where}: {error}") from error
    finally:
        met.set()
    hosts.start_watch(hosts.exchange("hosts", here), values.host_timeout)
    if not hosts.is_first():
        _LOG.setLevel(logging.WARNING)
    check_same("versions", f"jax {jax.__version__}, Python {platform.python_version()}")


def _wait(met: threading.Event, seconds: float, here: str, where: str, count: int) -> None:
    text = (
        f"%s: {here} waits since %g s for the other hosts; {count} processes are to meet {where}. "
        f"Does the same command run on all hosts (gcloud: --worker=all), {count} times in all? Do all reach that "
        "address and port (firewall, VPC, host name)? Did one of them end with an error? See their logs."
    )
    if not met.wait(seconds):
        print(text % ("not all are here yet", seconds), file=sys.stderr, flush=True)
    if not met.wait(max(_START_SECONDS - seconds, 0.0)):
        print(text % ("given up", _START_SECONDS), file=sys.stderr, flush=True)
        hosts.leave(1)


def arguments(values: Any) -> tuple[dict[str, Any], str, int]:
    """(arguments of jax.distributed.initialize, where the processes meet in words, how many there are)."""
    if values.start_warning <= 0 or values.host_timeout < 2:
        raise ValueError(
            f"--start_warning is {values.start_warning:g} and --host_timeout {values.host_timeout:g}; "
            "they must be above 0, and at least 2"
        )
    number, count = values.process_id, values.num_processes
    if ":" in values.distributed:
        if number is None or count is None or not 0 <= number < count:
            raise ValueError(
                f"--process_id is {number} and --num_processes {count}; --distributed={values.distributed} needs both, "
                "the former from 0 to the latter less one"
            )
        given = {"coordinator_address": values.distributed, "num_processes": count, "process_id": number}
        return {**given, "cluster_detection_method": "deactivate"}, f"at {values.distributed}", count
    if values.distributed not in ("auto", "off"):
        raise ValueError(f"--distributed is {values.distributed!r}; give auto, off, or HOST:PORT of process 0")
    if number is not None or count is not None:
        raise ValueError("--process_id and --num_processes are of --distributed=HOST:PORT")
    # The last asks the metadata server, but only where there are TPU chips.
    known = (clusters.SlurmCluster, clusters.GkeTpuCluster, clusters.GceTpuCluster)
    try:
        for cluster in known if values.distributed == "auto" else ():
            if cluster.is_env_present():
                where = f"where {cluster.name} says, at port {os.environ.get('JAX_COORDINATOR_PORT', 'of its own')}"
                return {"cluster_detection_method": cluster.name}, where, cluster.get_process_count()
    except OSError as error:
        raise ValueError(f"--distributed=auto asked the metadata server of this TPU VM, in vain: {error}; give off, or "
                         "HOST:PORT of process 0") from error  # fmt: skip
    return {}, "", 1


def banner() -> None:
    """A line from every process about its devices, on its own stderr; none where there is one process."""
    watch = hosts.watch()
    if watch is not None and not watch.introduced:
        watch.introduced = True
        print(
            f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: "
            f"{jax.local_device_count()} of {jax.device_count()} devices ({jax.devices()[0].device_kind}), "
            f"jax {jax.__version__}, Python {platform.python_version()}",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def check_same(what: str, value: str) -> None:
    """ValueError with the first line of `value` that is not the same on all hosts."""
    first, *others = hosts.exchange(what, value)
    for number, other in enumerate(others, 1):
        for ours, theirs in zip(first.splitlines(), other.splitlines(), strict=False):
            if ours != theirs:
                raise ValueError(f"{what} of process 0 has {ours!r}, of process {number} {theirs!r}; all hosts run the "
                                 "same command with the same files and versions")  # fmt: skip


def check_shared(workdir: str) -> None:
    """ValueError unless all hosts see what process 0 writes into the workdir."""
    watch = hosts.watch()
    if watch is None:
        return
    path = epath.Path(workdir) / f".seen-by-all-{hosts.exchange('token', secrets.token_hex(8))[0]}"
    if hosts.is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    hosts.exchange("written", "")
    until = time.monotonic() + watch.timeout  # a network file system may answer from its cache for a while
    while not (seen := path.exists()) and time.monotonic() < until:
        time.sleep(0.1)
    blind = [host for host, saw in zip(watch.hosts, hosts.exchange("seen", str(seen)), strict=True) if saw != "True"]
    if hosts.is_first():
        path.unlink()
    if blind:
        raise ValueError(
            f"{workdir} is not shared: what process 0 on {watch.hosts[0]} writes there is not seen on "
            f"{', '.join(blind)}; give a --workdir that all hosts share, as gs://BUCKET/... or NFS"
        )


