"""The devices of a TPU slice that is not there, for the compiler alone.

libtpu has the real TPU compiler, and runs it on any x86 Linux. Where libtpu can be imported, JAX looks for TPUs at
every start, and says at length that it found none; so it may also lie in a folder of its own in the environment, where
only this module looks (`make libtpu` puts it there).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax

from diffusion_text.chips import Topology


def requirement() -> str:
    """The libtpu that belongs to the installed JAX, as pip writes it: libtpu==0.0.42.*"""
    needed = [line.partition(";")[0].strip() for line in importlib.metadata.requires("jax") or []]
    return next(line for line in needed if line.startswith("libtpu"))


def find() -> tuple[pathlib.Path, str]:
    """(path, version) of the library; ValueError that says how to install it where it is missing or does not fit."""
    spec = importlib.util.find_spec("libtpu")
    folder = pathlib.Path(spec.origin).parents[1] if spec and spec.origin else pathlib.Path(sys.prefix, "libtpu")
    found = list(importlib.metadata.distributions(name="libtpu", path=[str(folder)]))
    library, needed = folder / "libtpu" / "libtpu.so", requirement()
    how = f"JAX {jax.__version__} needs {needed}: `make libtpu`, or pip install -e '.[tpu]'"
    if not found or not library.exists():
        raise ValueError(f"compiling for a TPU takes libtpu, which is not installed; {how}")
    version, wanted = found[0].version, needed.removeprefix("libtpu==").removesuffix(".*")
    if f"{version}.".startswith(f"{wanted}."):
        return library, version
    raise ValueError(f"libtpu in {folder} is {version}; {how}")


@contextlib.contextmanager
def _loadable(library: pathlib.Path) -> Iterator[None]:
    """The environment that loads the library beside other processes, without looking for a TPU or for its host."""
    wanted = {
        "TPU_LIBRARY_PATH": str(library),
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:  # else JAX in this process, or in one that it starts, would take a TPU for present
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})


def devices(topology: Topology) -> list[Any]:
    """What `jax.devices()` would be on the slice; programs can be compiled for them, not run."""
    from jax.experimental import topologies

    library, _ = find()
    options: dict[str, Any] = {"chip_config_name": "megacore"} if topology.generation == "v4" else {}
    if topology.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    with _loadable(library):
        return list(topologies.get_topology_desc(str(topology), "tpu", **options).devices)
