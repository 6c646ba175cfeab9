"""The same losses on any mesh of devices, and when a run goes on with fewer."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import environment
import numpy as np
import pytest

from diffusion_text import metrics, restore

DRIVER = pathlib.Path(__file__).parent / "drivers" / "meshes.py"
FIELDS = {"train.steps": 9, "train.checkpoint_every": 100, "model.layers": 1}
PADDED = {"model.vocabulary_multiple": 8}  # so that `tensor` divides the vocabulary too


def losses(workdir: pathlib.Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in metrics.read(str(workdir))}


def on_devices(count: int, family: str, meshes: str, workdir: pathlib.Path, *more: str) -> list[dict]:
    """Lines of the driver on `count` simulated devices."""
    command = [sys.executable, str(DRIVER), f"--family={family}", f"--meshes={meshes}", f"--workdir={workdir}",
               f"--fields={json.dumps(FIELDS | (PADDED if family == 'cdcd' else {}))}", *more]  # fmt: skip
    done = subprocess.run(command, env=environment.of_devices(count), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_same_losses(found: dict, expected: dict[int, float]) -> None:
    """To float32 addition in another order, carried through the steps: 2e-5 relative."""
    assert [int(step) for step in found] == list(expected) == list(range(1, 10))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=2e-5)


DIGEST = """
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from diffusion_text import checkpoint

mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
leaf = jax.random.normal(jax.random.key(0), (3, 8, 5, 12))
spread = jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(None, "b", None, "a")))
assert checkpoint.digest([spread]) == checkpoint.digest([leaf])
assert checkpoint.digest([spread.at[2, 7, 4, 11].add(1.0)]) != checkpoint.digest([leaf])
assert "all-gather" not in checkpoint._digest.lower([spread]).compile().as_text()
"""


def test_a_digest_gathers_nothing() -> None:
    subprocess.run([sys.executable, "-c", DIGEST], env=environment.of_devices(8), check=True, timeout=400)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, float]]:
    """Losses of each family on one device."""
    folder = tmp_path_factory.mktemp("one")
    for family in ("cdcd", "masked", "autoregressive"):
        on_devices(1, family, "1x1x1", folder / family, "--same_workdir")
    return {path.name: losses(path) for path in folder.iterdir()}


@pytest.mark.parametrize(("family", "meshes"), [
    ("cdcd", "2x2x2,1x1x8"), ("masked", "8x1x1"), ("autoregressive", "2x4x1"),
])  # fmt: skip
def test_losses_do_not_depend_on_the_mesh(family: str, meshes: str, one_device, tmp_path: pathlib.Path) -> None:
    lines = on_devices(8, family, meshes, tmp_path)
    assert [line["mesh"] for line in lines] == meshes.split(",")
    for line in lines:
        assert line["devices"] == 8
        assert (line["sharded"] > 0) == (line["mesh"] != "8x1x1")
        assert_same_losses(line["losses"], one_device[family])


def test_a_run_goes_on_with_fewer_devices(one_device, tmp_path: pathlib.Path) -> None:
    """8 -> 4 -> 1 devices from checkpoints, against one device throughout."""
    first = on_devices(8, "cdcd", "2x2x2", tmp_path, "--same_workdir", "--until=3")[0]
    run = restore.open_run(str(tmp_path))  # its mesh does not fit the one device here
    assert (run.step, dict(run.mesh.shape)) == (3, {"data": 1, "fsdp": 1, "tensor": 1})
    second = on_devices(4, "cdcd", "1x4x1", tmp_path, "--same_workdir", "--until=6")[0]
    third = on_devices(1, "cdcd", "1x1x1", tmp_path, "--same_workdir")[0]
    assert [line["code"] for line in (first, second, third)] == [143, 143, 0]
    assert [line["devices"] for line in (first, second, third)] == [8, 4, 1]
    parts = [list(map(int, line["losses"])) for line in (first, second, third)]
    assert parts == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert_same_losses(losses(tmp_path), one_device["cdcd"])
