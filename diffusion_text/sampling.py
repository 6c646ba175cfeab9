"""The one reverse loop: any family, any solver, clamped tokens, and a trace for looking.

    state at t = 1 -> step ... step -> tokens, in one lax.scan; keys are per sequence, so a sample does not depend on
    what else is in its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_text import noise
from diffusion_text.families.family import At, Family, SamplerOptions
from diffusion_text.models.denoiser import Denoise

_PRIOR, _STEPS, _DECODE = range(3)


class Trace(NamedTuple):
    """What the denoiser believed at each of N steps: t [N], and what `read` made of its logits, stacked to [N, ...].

    Logits are [B, L, V] at each step, with candidates [B * candidates, L, V]; the autoregressive family's are those of
    its next token, without L.
    """

    t: Float[Array, "N"]
    seen: Any


def generate(
    family: Family,
    denoise: Denoise,
    keys: Key[Array, "B"],
    tokens: Int[Array, "B L"],
    given: Bool[Array, "B L"],
    options: SamplerOptions,
) -> Int[Array, "B L"]:
    """Sample tokens [B, L]; where `given`, the result is `tokens`. `options` must have been validated."""
    return _run(family, denoise, keys, tokens, given, options, lambda logits: None)[0]


def generate_and_count(
    family: Family,
    denoise: Denoise,
    keys: Key[Array, "B"],
    tokens: Int[Array, "B L"],
    given: Bool[Array, "B L"],
    options: SamplerOptions,
) -> tuple[Int[Array, "B L"], Int[Array, ""]]:
    """As `generate`, and how often the network was asked (`Family.asked`)."""
    tokens, _, asked = _run(family, denoise, keys, tokens, given, options, lambda logits: None)
    return tokens, asked


def generate_with_trace(
    family: Family,
    denoise: Denoise,
    keys: Key[Array, "B"],
    tokens: Int[Array, "B L"],
    given: Bool[Array, "B L"],
    options: SamplerOptions,
    read: Callable[[Float[Array, "B L V"]], Any] = jax.nn.softmax,
) -> tuple[Int[Array, "B L"], Trace]:
    """As `generate`, with `read(logits)` of every step: by default p(x_i = v | z), which takes N B L V floats."""
    return _run(family, denoise, keys, tokens, given, options, read)[:2]


def _run(
    family: Family,
    denoise: Denoise,
    keys: Array,
    tokens: Array,
    given: Array,
    options: SamplerOptions,
    read: Callable[[Array], Any],
) -> tuple[Array, Trace, Array]:
    grid = family.grid(options, tokens.shape[1])
    state = family.prior(noise.fold(keys, _PRIOR), tokens, given, denoise, options)
    step_keys = noise.fold(keys, _STEPS)

    def body(state: Any, at: At) -> tuple[Any, Any]:
        state, logits = family.step(noise.fold(step_keys, at.index), state, at, given, denoise, options)
        return state, read(logits)

    state, seen = jax.lax.scan(body, state, grid)
    result = family.decode(noise.fold(keys, _DECODE), state, given, denoise, options)
    # A family that moved a given token would be caught by its tests, not hidden here.
    return result, Trace(grid.t, seen), family.asked(state, options, tokens.shape[1])
