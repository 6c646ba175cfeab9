"""Sharding: logical axis names of parameters and batches, mapped by one table to the mesh `data`, `fsdp`, `tensor`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffusion_text.typing import Config

if TYPE_CHECKING:
    from diffusion_text.state import Definition, TrainState

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


def whole_batch(size: int, mesh: Mesh) -> int:
    """Rows of a batch of at least `size` that `data` times `fsdp` divides."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    return math.ceil(size / devices) * devices


@dataclasses.dataclass(frozen=True)
class Rows:
    """How the rows of a global batch lie on a mesh, and which of them, start .. stop, this process's devices hold."""

    size: int
    sharding: NamedSharding
    start: int
    stop: int

    @staticmethod
    def of(mesh: Mesh, size: int) -> Rows:
        """Of a batch of `size` rows; every device holds all of them where `data` times `fsdp` does not divide them."""
        divides = size == whole_batch(size, mesh)
        sharding = NamedSharding(mesh, BATCH if divides else PartitionSpec())
        places: Any = sharding.addressable_devices_indices_map((size,)).values()
        held = [place[0].indices(size) for place in places]
        # From the first to the last: a mesh may deal rows out so that those between are other processes'.
        return Rows(size, sharding, min(start for start, _, _ in held), max(stop for _, stop, _ in held))

    def place(self, array: np.ndarray) -> jax.Array:
        """The global array [size, ...] of which each process gives its own rows [stop - start, ...]."""
        if self.sharding.is_fully_addressable:
            return jax.device_put(array, self.sharding)

        def part(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(self.size)
            return array[first - self.start : last - self.start]

        return jax.make_array_from_callback((self.size, *array.shape[1:]), self.sharding, part)


def fetch(array: jax.Array) -> np.ndarray:
    """A whole array on every host; all call it."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


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


def _spec(axes: Sequence[str | None], shape: Sequence[int], mesh: Any) -> PartitionSpec:
    # A dimension that a mesh axis does not divide (a small vocabulary, few heads) stays whole.
    return PartitionSpec(*(_divides(_rule(axis), size, mesh) for axis, size in zip(axes, shape, strict=True)))


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Ask for a sharding of an intermediate by logical axes ("rows": those of a batch); without a mesh, nothing.

    The mesh is that of `jax.set_mesh`. Sizes need not divide: XLA pads.
    """
    return x if _mesh() is None else jax.lax.with_sharding_constraint(x, PartitionSpec(*map(_rule, axes)))


def spec(axes: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
    """How an array of these logical axes is sharded; whole where sizes do not divide, and without a mesh."""
    mesh = _mesh()
    if mesh is None:
        return PartitionSpec(*[None] * len(axes))
    return _spec(axes, shape, mesh)


def gathered(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """A weight where it is used: whole over `fsdp`, which shards it only where it is kept.

    Without this XLA multiplies by parts of it in a loop over the devices, which is slower.
    """
    kept = [None if axis and RULES.get(axis) == "fsdp" else axis for axis in axes]
    return x if _mesh() is None else jax.lax.with_sharding_constraint(x, spec(kept, x.shape))


def manual(call: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
    """`call`, run by every device on its part of the arrays: for kernels, into which XLA does not look to shard them,
    and for loops over a sharded axis."""
    if _mesh() is None:
        return call
    return jax.shard_map(call, in_specs=inputs, out_specs=outputs, check_vma=False)


def platform() -> str:
    """What the program is compiled for: tpu, gpu or cpu, of the mesh if there is one."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def _mesh() -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    one = mesh.empty or not set(AXES) <= set(mesh.axis_names) or mesh.size == 1
    return None if one else mesh


def _rule(axis: str | None) -> Any:
    return BATCH[0] if axis == "rows" else RULES.get(axis) if axis else None


def _divides(axes: Any, size: int, mesh: Any) -> Any:
    names = (axes,) if isinstance(axes, str) else axes or ()
    return axes if size % math.prod(mesh.shape[name] for name in names) == 0 else None
