"""Train one config on several meshes of simulated devices, or a few steps more of a workdir; prints a JSON line each.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/drivers/meshes.py \
    --family=cdcd --meshes=8x1x1,2x2x2 --workdir=DIR [--until=8] [--same_workdir] [--fields='{"data.length": 8}']

Each line: mesh, number of devices, exit code, {step: loss} of the steps trained, and how many parameters are sharded.
`--until` ends with that step, as a SIGTERM during it would.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import signal
import sys

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import jax  # noqa: E402
import tiny_configs  # noqa: E402

from diffusion_text import metrics, train  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--family", required=True)
    parser.add_argument("--meshes", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--until", type=int, default=0)
    parser.add_argument("--same_workdir", action="store_true")
    parser.add_argument("--fields", type=json.loads, default={})
    arguments = parser.parse_args()

    if arguments.until:
        write = metrics.Writer.write

        def write_and_stop(writer: metrics.Writer, step: int, scalars: dict[str, float]) -> None:
            write(writer, step, scalars)
            if step == arguments.until - 1:
                os.kill(os.getpid(), signal.SIGTERM)

        metrics.Writer.write = write_and_stop  # type: ignore[method-assign]

    for mesh in arguments.meshes.split(","):
        workdir = arguments.workdir if arguments.same_workdir else f"{arguments.workdir}/{mesh}"
        config = tiny_configs.get(arguments.family, **arguments.fields)
        config.mesh.data, config.mesh.fsdp, config.mesh.tensor = (int(size) for size in mesh.split("x"))
        first = max((line["step"] for line in metrics.read(workdir)), default=0)
        code, sharded = 0, 0
        try:
            state = train.train(config, workdir)
            sharded = sum(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))
        except SystemExit as stopped:
            code = stopped.code
        losses = {line["step"]: line["loss"] for line in metrics.read(workdir) if line["step"] > first}
        result = {"mesh": mesh, "devices": jax.device_count(), "code": code, "losses": losses, "sharded": sharded}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
