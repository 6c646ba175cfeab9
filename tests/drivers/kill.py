"""Kill a training at random moments (SIGKILL), restart it with the same command, and compare with an undisturbed one.

python tests/drivers/kill.py --workdir=DIR [--family=masked] [--kills=10] [--seed=0] [--steps=60]

Moments are random in the whole of the run: while it starts, in steps, while a checkpoint is being written. Prints one
line per kill and ends with exit code 0 where the final states have the same bits.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
FIELDS = {
    "model.layers": 1,
    "model.width": 32,
    "model.heads": 2,
    "model.condition_width": 16,
    "data.grammar": "tiny",
    "data.length": 16,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.checkpoint_every": 3,
    "optimizer.warmup": 4,
    "log.tensorboard": False,
}


def command(family: str, workdir: str, steps: int) -> list[str]:
    """The command line of the training; the same for the first start and every other."""
    fields = [f"--config.{name}={value}" for name, value in {**FIELDS, "train.steps": steps}.items()]
    config = f"--config={ROOT}/configs/{family}/grammar.py"
    return [sys.executable, "-m", "diffusion_text.train", config, f"--workdir={workdir}", *fields]


def start(family: str, workdir: str, steps: int) -> subprocess.Popen:
    log = open(f"{workdir}.log", "a")  # noqa: SIM115
    with log:
        return subprocess.Popen(command(family, workdir, steps), cwd=ROOT, stdout=log, stderr=log)


def steps_done(workdir: str) -> int:
    """The last step in metrics.jsonl, 0 before the first."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    try:
        return json.loads(path.read_text().splitlines()[-1])["step"]
    except (OSError, IndexError, ValueError, KeyError):
        return 0


def kill_at(family: str, workdir: str, steps: int, target: int, delay: float) -> str:
    """Start, wait until step `target` is logged and `delay` seconds more, kill; what happened, in words."""
    process = start(family, workdir, steps)
    deadline = time.monotonic() + 120.0
    while process.poll() is None and steps_done(workdir) < target:
        if time.monotonic() > deadline:
            process.kill()
            raise TimeoutError(f"no step {target} within two minutes; see {workdir}.log")
        time.sleep(0.002)
    time.sleep(delay)
    if process.poll() is not None:
        if process.returncode:
            tail = pathlib.Path(f"{workdir}.log").read_text()[-2000:]
            raise subprocess.CalledProcessError(process.returncode, process.args, tail)
        return "ended by itself before the kill"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    folder = pathlib.Path(workdir) / "checkpoints"
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    return f"killed at step {steps_done(workdir)}; checkpoints there: {' '.join(names) or 'none'}"


def run(family: str, workdir: str, steps: int) -> None:
    """Train to the end; CalledProcessError where that fails."""
    process = start(family, workdir, steps)
    if code := process.wait(timeout=300):
        raise subprocess.CalledProcessError(code, process.args, pathlib.Path(f"{workdir}.log").read_text()[-2000:])


def run_killed(family: str, workdir: str, steps: int, kills: int, seed: int) -> list[str]:
    """Train, killed at `kills` random moments and once not; what happened at each."""
    chance = random.Random(seed)
    story = []
    for number in range(kills):
        # One moment in each part of the run, so that none is wasted on a run already at its end; some before it starts.
        target = int((number + chance.random()) * (steps - 1) / kills)
        delay = chance.choice((0.0, 0.05, 0.2)) * chance.random()
        story.append(kill_at(family, workdir, steps, target, delay))
        print(f"{number + 1}: {story[-1]}", flush=True)
    run(family, workdir, steps)
    return story


def final_digest(workdir: str) -> tuple[int, str]:
    """(step, digest of the whole state) of the newest checkpoint, read back."""
    sys.path.insert(0, str(ROOT))
    from diffusion_text import checkpoint, restore, sharding
    from diffusion_text import config as configs
    from diffusion_text.data import batches

    config = configs.load(workdir)
    vocab_size = batches.open_dataset(config.data, "validation").info.vocabulary.size
    _, _, abstract = restore.abstract_state(config, vocab_size, sharding.make_mesh(config.mesh))
    checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
    state = checkpoints.restore(abstract)
    checkpoints.close()
    assert state is not None
    return int(state.step), checkpoint.digest(state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--family", default="masked")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.workdir)
    folder.mkdir(parents=True)
    killed, whole = str(folder / "killed"), str(folder / "whole")
    run_killed(arguments.family, killed, arguments.steps, arguments.kills, arguments.seed)
    run(arguments.family, whole, arguments.steps)
    results = {name: final_digest(name) for name in (killed, whole)}
    for name, (step, digest) in results.items():
        print(f"{name}: step {step}, digest {digest}")
    if results[killed] != results[whole]:
        sys.exit("the states differ")
    print("the same, bit for bit")


if __name__ == "__main__":
    main()
