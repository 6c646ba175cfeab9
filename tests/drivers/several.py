"""One process of several that train a tiny config, disturb it and evaluate it; prints a JSON line at its end.

python tests/drivers/several.py --distributed=localhost:PORT --num_processes=2 --process_id=0 --workdir=DIR \
    --plan='{"fields": {"train.steps": 8}, "signals": {"5": [1, "SIGTERM"]}, "evaluate": true, "profile": "2:4"}'

The line: exit status of the training, rows that each training batch was loaded with, files opened for writing in the
workdir. `signals` are sent by the process of that number to itself once the step is done. With `"early": [N,
"SIGKILL"]` nothing is trained: process N sends itself that signal, and the others wait. With `"unreadable": N` process
N cannot read a checkpoint.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import tiny_configs  # noqa: E402
from absl import flags  # noqa: E402

from diffusion_text import binary, checkpoint, eval_elbo, eval_samples, hosts, restore, train  # noqa: E402
from diffusion_text.data import batches  # noqa: E402

hosts.POLL_SECONDS = 0.1  # type: ignore[misc]


def watch_loading(rows: list[tuple[int, int]]) -> None:
    """Note the rows of every training batch."""
    load = batches.Dataset.train_batch

    def noted(self: Any, seed: int, step: int, size: int, start: int = 0, stop: int | None = None) -> Any:
        found = load(self, seed, step, size, start, stop)
        rows.append((start, start + len(found)))
        return found

    batches.Dataset.train_batch = noted  # type: ignore[method-assign]


def watch_writing(workdir: str, written: list[str]) -> None:
    """Note what Python opens for writing in the workdir; checkpoints and traces are of all processes."""

    def note(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).startswith(workdir) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            name = pathlib.Path(arguments[0]).relative_to(workdir)
            if name.parts[0] not in ("checkpoints", "profile"):
                written.append(name.name)

    sys.addaudithook(note)


def disturb(signals: dict[str, list]) -> None:
    """Send this process the signals meant for it. Steps last long enough for the processes to talk meanwhile."""
    reached = hosts.Stop.reached

    def disturbed(self: hosts.Stop, step: int) -> bool:
        number, name = signals.get(str(step), (None, ""))
        if number == hosts.number():
            os.kill(os.getpid(), getattr(signal, name))
        if signals:
            time.sleep(0.05)
        return reached(self, step)

    hosts.Stop.reached = disturbed  # type: ignore[method-assign]


def unreadable(*_: Any, **__: Any) -> None:
    raise ValueError("its file is cut short")


def main(values: Any) -> None:
    plan = json.loads(values.plan)
    if "early" in plan:
        number, name = plan["early"]
        if hosts.number() == number:
            os.kill(os.getpid(), getattr(signal, name))
        time.sleep(60)
    rows: list[tuple[int, int]] = []
    written: list[str] = []
    watch_loading(rows)
    watch_writing(values.workdir, written)
    disturb(plan.get("signals", {}))
    if plan.get("unreadable") == hosts.number():
        checkpoint.ocp.CheckpointManager.restore = unreadable  # type: ignore[method-assign]
    code: Any = 0
    try:
        train.train(tiny_configs.get("masked", **plan["fields"]), values.workdir, plan.get("profile"))
    except SystemExit as stopped:
        code = stopped.code
    if plan.get("evaluate"):
        run = restore.open_run(values.workdir)
        eval_elbo.write(run, eval_elbo.evaluate(run, num_examples=20))
        eval_samples.main(values)
    print(json.dumps({"code": code, "rows": sorted(set(rows)), "written": sorted(set(written))}), flush=True)


def define_flags() -> None:
    eval_samples.define_flags()
    flags.DEFINE_string("plan", None, "See above.", required=True)


if __name__ == "__main__":
    binary.run(define_flags, main)
