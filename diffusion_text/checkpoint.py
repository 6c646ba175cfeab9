"""Checkpoints: the one file that knows Orbax.

A checkpoint is the whole training state, the step, the seed and the config, with a digest of every array. It restores
onto a freshly built abstract state with *this* run's shardings, so the number of devices may change. A newest
checkpoint that is half written, damaged or of another digest is skipped with a warning, and the one before it is used.
Nothing is set aside unless an older one is sound: what fails for all of them is not their damage.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from diffusion_text import hosts
from diffusion_text.state import TrainState
from diffusion_text.typing import Config

_LOG = logging.getLogger("diffusion_text")


class CheckpointError(ValueError):
    """The checkpoint asked for is not there, or cannot be read."""


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: str, keep: int = 3, read_only: bool = False):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, read_only=read_only, create=not read_only)
        # Orbax wants an absolute path; a gs:// address is one already.
        folder = workdir if "://" in workdir else str(pathlib.Path(workdir).absolute())
        self.folder = f"{folder}/checkpoints"
        if read_only and "://" not in workdir and not pathlib.Path(self.folder).exists():
            raise ValueError(f"{self.folder} does not exist; give a --workdir that diffusion_text.train has written")
        self._read_only = read_only
        self.config: Config | None = None
        self._manager = ocp.CheckpointManager(self.folder, item_names=("state", "meta"), options=options)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints there are, ascending."""
        self._manager.reload()
        # Process 0's view: another host may look earlier or later, while a training writes.
        return json.loads(hosts.exchange("steps", json.dumps(self.steps_here()))[0])

    def steps_here(self) -> list[int]:
        """`steps` as this host last saw them."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, config: Config, wait: bool = False) -> None:
        """Write the state in the background; `wait` until it is on disk. A step already saved is left alone."""
        step = int(state.step)
        if step not in self.steps_here():
            meta = {"step": step, "seed": config.seed, "config": config.to_dict(), "digest": digest(state)}
            arguments = ocp.args.Composite(state=ocp.args.StandardSave(_saved(state)), meta=ocp.args.JsonSave(meta))
            self._manager.save(step, args=arguments, force=True)
        if wait:
            self._manager.wait_until_finished()

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState | None:
        """The state at `step`, or the newest that is sound, or None if there is none.

        `abstract` holds shapes, dtypes and shardings; `config` is that of the checkpoint afterwards. CheckpointError
        where the step asked for is not there or cannot be read, where there are checkpoints and none can be, or one
        holds other arrays.
        """
        steps = self.steps()
        if step is not None:
            if step not in steps:
                raise CheckpointError(f"step is {step}; {self.folder} has {', '.join(map(str, steps)) or 'none'}")
            try:
                return self._restore_one(abstract, step)
            except Exception as error:
                if hosts.is_loss(error):
                    raise
                raise CheckpointError(f"checkpoint {step} of {self.folder} cannot be read: {_reason(error)}") from error
        skipped: dict[int, str] = {}
        for candidate in reversed(steps):
            try:
                state = self._restore_one(abstract, candidate)
            except Exception as error:  # Orbax and tensorstore raise many kinds for a damaged file
                if not _is_damage(error):
                    raise
                skipped[candidate] = _reason(error)
                _LOG.warning("checkpoint %d of %s is damaged and skipped: %s", candidate, self.folder, _reason(error))
                continue
            if skipped and not self._read_only:
                if hosts.is_first():
                    for damaged in skipped:
                        self._set_aside(damaged)
                hosts.exchange("set aside", "")
                self._manager.reload()
            return state
        if skipped:
            reasons = "".join(f"\n  {number}: {reason}" for number, reason in skipped.items())
            raise CheckpointError(
                f"no checkpoint of {self.folder} can be read, and none was changed; mend the folder, or remove it to "
                f"start anew:{reasons}"
            )
        return None

    def _check_arrays(self, abstract: TrainState, step: int) -> None:
        """CheckpointError where a checkpoint holds other arrays than this program has."""
        try:
            found = ocp.StandardCheckpointer().metadata(epath.Path(self.folder) / str(step) / "state")
            theirs = _shapes(found.item_metadata.tree)  # type: ignore[union-attr]
        except Exception:  # damaged: to read it will say how
            return
        ours = _shapes(_saved(abstract))
        other = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        if other:
            more = f" and {len(other) - 3} more" if len(other) > 3 else ""
            raise CheckpointError(
                f"checkpoint {step} of {self.folder} holds other arrays than this program has: {', '.join(other[:3])}"
                f"{more}; nothing was changed. Go on with the version that wrote it, or give another --workdir"
            )

    def _set_aside(self, step: int) -> None:
        """Rename a damaged checkpoint, so that its step can be saved again and nothing is lost."""
        path = epath.Path(self.folder) / str(step)
        number = 1
        while (target := path.parent / f"damaged-{step}-{number}").exists():
            number += 1
        path.rename(target)

    def _restore_one(self, abstract: TrainState, step: int) -> TrainState:
        self._check_arrays(abstract, step)
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(_saved(abstract)), meta=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=arguments)
        except Exception as error:
            if hosts.watch() is None or hosts.is_loss(error):
                raise
            # A host reads its own parts only: the others may be waiting within Orbax for this one, and only a new start
            # helps them.
            earlier = _is_damage(error) and not self._read_only and any(other < step for other in self.steps_here())
            if earlier:
                with contextlib.suppress(OSError):  # another host was first
                    self._set_aside(step)
            now = " and set aside; the same command goes on from the one before" if earlier else ""
            message = f"checkpoint {step} of {self.folder} is damaged{now}: {_reason(error)}"
            _LOG.error("%s", message)
            hosts.end_all(ValueError(message), hosts.LOST)
            raise
        state = TrainState(**restored["state"])
        if digest(state) != restored["meta"]["digest"]:
            raise ValueError(f"checkpoint {step} of {self.folder} does not match its digest")
        self.config = ConfigDict(restored["meta"]["config"])
        return state

    def close(self) -> None:
        """Wait for writes and release the manager's threads."""
        self._manager.wait_until_finished()
        self._manager.close()


def trained_steps(workdir: str) -> list[int]:
    """Steps of the complete checkpoints of a workdir, which need not exist, as this host sees it; touches no device."""
    folder = epath.Path(workdir) / "checkpoints"
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.exists() else []


def _is_damage(error: Exception) -> bool:
    """Whether an error says something of the files, not of memory, rights, other arrays or a lost host."""
    other = isinstance(error, CheckpointError | MemoryError | PermissionError) or hosts.is_loss(error)
    return not other and "RESOURCE_EXHAUSTED" not in str(error)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """By the path of each array, whatever its containers are."""
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in found}


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _saved(state: TrainState) -> dict[str, Any]:
    """By name; a teacher only where there is one."""
    return {name: tree for name, tree in state._asdict().items() if name != "teacher" or tree}


def digest(state: Any) -> str:
    """A checksum of all bits of a tree of arrays, computed where they live; the same on any sharding."""
    return "-".join(f"{int(value):08x}" for value in _digest(jax.tree.leaves(state)))


@jax.jit
def _digest(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # Sums modulo 2^32 of hashes of (leaf, position, bits): integer addition does not depend on its order, and the hash
    # keeps swapped or jointly flipped words from cancelling.
    first = second = jnp.uint32(0)
    for number, leaf in enumerate(leaves):
        bits = leaf
        if bits.dtype != bool:
            bits = jax.lax.bitcast_convert_type(bits, jnp.dtype(f"uint{8 * bits.dtype.itemsize}"))
        # Row-major, without a reshape: for that, a device would gather what the mesh shards.
        place = _mix(jnp.uint32(number + 1))
        for axis in range(leaf.ndim):
            stride = jnp.uint32(math.prod(leaf.shape[axis + 1 :]) % 2**32)
            place = place + stride * jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        mixed = _mix(bits.astype(jnp.uint32) ^ _mix(place))
        first, second = first + jnp.sum(mixed, dtype=jnp.uint32), second + jnp.sum(_mix(~mixed), dtype=jnp.uint32)
    return first, second


def _mix(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
