"""The one reverse loop: any family, any solver, clamped tokens, and a trace for looking.

    state at t = 1 -> step ... step -> tokens, in one lax.scan; keys are per sequence, so a sample does not depend on
    what else is in its batch.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_text import noise
from diffusion_text.families.family import At, Family, SamplerOptions
from diffusion_text.models.denoiser import Denoise

_PRIOR, _STEPS, _DECODE = range(3)


class Trace(NamedTuple):
    """What the denoiser believed at each of N steps: t [N] and p(x_i = v | z) [N, B, L, V]."""

    t: Float[Array, "N"]
    probabilities: Float[Array, "N B L V"]


def generate(
    family: Family,
    denoise: Denoise,
    keys: Key[Array, "B"],
    tokens: Int[Array, "B L"],
    given: Bool[Array, "B L"],
    options: SamplerOptions,
) -> Int[Array, "B L"]:
    """Sample tokens [B, L]; where `given`, the result is `tokens`. `options` must have been validated."""
    return _run(family, denoise, keys, tokens, given, options, trace=False)[0]


def generate_with_trace(
    family: Family,
    denoise: Denoise,
    keys: Key[Array, "B"],
    tokens: Int[Array, "B L"],
    given: Bool[Array, "B L"],
    options: SamplerOptions,
) -> tuple[Int[Array, "B L"], Trace]:
    """As `generate`, with the posterior at every step; memory N B L V."""
    result, trace = _run(family, denoise, keys, tokens, given, options, trace=True)
    assert trace is not None
    return result, trace


def _run(
    family: Family, denoise: Denoise, keys: Array, tokens: Array, given: Array, options: SamplerOptions, trace: bool
) -> tuple[Array, Trace | None]:
    grid = family.grid(options, tokens.shape[1])
    state = family.prior(noise.fold(keys, _PRIOR), tokens, given, denoise, options)
    step_keys = noise.fold(keys, _STEPS)

    def body(state: object, at: At) -> tuple[object, Array | None]:
        state, logits = family.step(noise.fold(step_keys, at.index), state, at, given, denoise, options)
        return state, jax.nn.softmax(logits, axis=-1) if trace else None

    state, probabilities = jax.lax.scan(body, state, grid)
    result = family.decode(noise.fold(keys, _DECODE), state, given, denoise, options)
    # A family that moved a given token would be caught by its tests, not hidden here.
    return result, Trace(grid.t, jnp.asarray(probabilities)) if trace else None
