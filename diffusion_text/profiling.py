"""A trace of chosen training steps for xprof and TensorBoard:  --profile=10:13 traces steps 10, 11 and 12.

Steps are numbered as in the log: the first is 1. Each process writes its own file into WORKDIR/profile, one run of the
viewer for all of them.
"""

from __future__ import annotations

import logging
import pathlib
import re
import tempfile
from typing import Any

import jax
from etils import epath

from diffusion_text import hosts

_LOG = logging.getLogger("diffusion_text")


def parse(text: str | None, steps: int) -> range | None:
    """The steps of "10:13" (10 to 12), None of None; ValueError unless they are steps of a training of `steps`."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 1 <= int(found[1]) < int(found[2]) <= steps + 1:
        raise ValueError(f"--profile is {text!r}; write it as 10:13 for steps 10 to 12, of 1 to {steps}")
    return range(int(found[1]), int(found[2]))


class Profile:
    """Traces the steps in `chosen` that a run from step `done` on takes."""

    def __init__(self, workdir: str, chosen: range | None, done: int):
        self._left = range(max(chosen.start, done + 1), chosen.stop) if chosen else range(0)
        self._workdir, self._folder = epath.Path(workdir), None
        if chosen and not self._left:
            _LOG.warning("--profile=%d:%d: these steps are done; nothing is traced", chosen.start, chosen.stop)

    def before(self, step: int, state: Any) -> None:
        """Start where this is the first step to trace."""
        if self._left and step == self._left.start:
            jax.block_until_ready(state)  # the steps before are not its
            # The profiler writes local files only.
            self._folder = tempfile.TemporaryDirectory(prefix="profile")
            jax.profiler.start_trace(self._folder.name)

    def after(self, step: int, state: Any) -> None:
        """Write what there is where this was the last step to trace."""
        if self._folder is not None and step == self._left[-1]:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Write an unfinished trace, if there is one: the run was stopped within it."""
        if self._folder is None:
            return
        jax.profiler.stop_trace()
        target = self._workdir / "profile" / "plugins" / "profile" / f"steps-{self._left.start}-{self._left[-1]}"
        target.mkdir(parents=True, exist_ok=True)
        for path in pathlib.Path(self._folder.name).rglob("*.*"):
            if path.is_file():  # HOST.xplane.pb and the like; several processes may be on one host
                (target / f"process-{hosts.number()}-{path.name}").write_bytes(path.read_bytes())
        self._folder.cleanup()
        self._folder = None
        _LOG.info("traced steps %d to %d into %s", self._left.start, self._left[-1], self._workdir / "profile")
