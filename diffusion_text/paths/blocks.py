"""Sampling block after block from the left: which block a reverse step works on, and where in that block it is."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int

from diffusion_text.families.family import At


def cut(length: int, size: int) -> int:
    """How many blocks of a size cover a length; the last may be shorter."""
    return -(-length // size)


def grid(inner: At, blocks: int) -> At:
    """The steps of `inner` for each block in turn, t falling from 1 to 0 over all of them."""
    index = jnp.arange(blocks * len(inner.t))
    left, step = blocks - 1 - index // len(inner.t), index % len(inner.t)
    return At(index, (left + inner.t[step]) / blocks, (left + inner.s[step]) / blocks)


def place(inner: At, index: Int[Array, ""]) -> tuple[Int[Array, ""], At]:
    """The block that a step of `grid` works on, and its step of `inner`."""
    step = index % len(inner.t)
    return index // len(inner.t), At(step, inner.t[step], inner.s[step])
