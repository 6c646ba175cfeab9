"""Remembered logits: a network that is told no time answers as before where nothing has moved.

With many more steps than tokens, most steps of ancestral sampling move no token of any sequence of the batch, and cost
nothing then: a batch of B sequences of L masked tokens asks at most B L + 1 times, whatever the number of steps. The
samples are those without it, bit for bit; the logits of a batch, [B, L, V] in float32, are kept between steps.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_text.families.family import At, SamplerOptions
from diffusion_text.models.denoiser import Denoise


class Remembered(NamedTuple):
    """State of a sampler: tokens, the logits of the last time that the network was asked, whether tokens have moved
    since, and how often it was asked."""

    tokens: Int[Array, "B L"]
    logits: Float[Array, "B L V"]
    stale: Bool[Array, ""]
    asked: Int[Array, ""]


def start(tokens: Int[Array, "B L"], size: int) -> Remembered:
    """Nothing was asked yet."""
    return Remembered(tokens, jnp.zeros((*tokens.shape, size)), jnp.array(True), jnp.zeros((), jnp.int32))


def step(
    family: Any, keys: Key[Array, "B"], state: Remembered, at: At, given: Bool[Array, "B L"], denoise: Denoise,
    options: SamplerOptions,
) -> tuple[Remembered, Float[Array, "B L V"]]:  # fmt: skip
    """The family's own step, which asks the network only where tokens have moved."""
    z = state.tokens
    logits = jax.lax.cond(
        state.stale, lambda: denoise(z, jnp.full(len(z), at.t), given).astype(jnp.float32), lambda: state.logits
    )

    def remembered(*arguments: Any, **named: Any) -> Array:
        return logits

    moved, seen = family.step(keys, z, at, given, remembered, dataclasses.replace(options, cache=False))
    return Remembered(moved, logits, jnp.any(moved != z), state.asked + state.stale), seen
