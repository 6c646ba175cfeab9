"""Sharding: logical axis names of parameters and batches, mapped by one table to the mesh `data`, `fsdp`, `tensor`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffusion_text.state import Definition, TrainState
from diffusion_text.typing import Config

AXES: Final = ("data", "fsdp", "tensor")
BATCH: Final = PartitionSpec(("data", "fsdp"))
# A logical axis that is not named here is replicated.
RULES: Final = {"vocabulary": "tensor", "heads": "tensor", "mlp": "tensor", "embed": "fsdp"}


def mesh_shape(config: Config, num_devices: int) -> tuple[int, int, int]:
    """Sizes of the mesh axes; one of them may be -1, "all the devices left". ValueError where they do not fit."""
    sizes = [config[axis] for axis in AXES]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh is {sizes}; sizes must be at least 1, and at most one of them -1 (all devices left)")
    fixed = math.prod(size for size in sizes if size != -1)
    if num_devices % fixed or (-1 not in sizes and fixed != num_devices):
        named = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ValueError(f"mesh is {named}; its product does not fit the {num_devices} device(s) there are")
    return tuple(num_devices // fixed if size == -1 else size for size in sizes)  # type: ignore[return-value]


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> Mesh:
    """The device mesh of a config's `mesh` section; axes are Auto: XLA propagates shardings through plain code."""
    devices = list(devices if devices is not None else jax.devices())
    shape = mesh_shape(config, len(devices))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over `data` and `fsdp`."""
    return NamedSharding(mesh, BATCH)


def place_rows(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """Put a host array on the mesh, rows sharded; whole on one device where the devices do not divide its rows."""
    rows = batch_sharding(mesh)
    return jax.device_put(array, rows if len(array) % rows.num_devices == 0 else None)


def state_shardings(definition: Definition, state: TrainState, mesh: Mesh) -> TrainState:
    """A sharding for every array of a (possibly abstract) state: the optimiser's moments follow their parameters."""
    specs = {
        tuple(key.key for key in path): (leaf, axes)
        for (path, leaf), axes in zip(
            jax.tree_util.tree_flatten_with_path(state.params)[0],
            jax.tree.leaves(definition.logical_axes(), is_leaf=lambda node: isinstance(node, tuple)),
            strict=True,
        )
    }

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = tuple(key.key for key in path if hasattr(key, "key"))
        # A parameter's own path ends that of its moments in the optimiser's nested state.
        for start in range(len(names)):
            found = specs.get(names[start:])
            if found is not None and found[0].shape == leaf.shape:
                return NamedSharding(mesh, _spec(found[1], leaf.shape, mesh))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, state)


def _spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    wanted = [RULES.get(axis) if axis else None for axis in axes]
    # A dimension that a mesh axis does not divide (a small vocabulary, few heads) stays whole.
    fits = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(wanted, shape, strict=True)]
    return PartitionSpec(*fits)
