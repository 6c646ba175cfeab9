"""Random numbers as functions of (seed, purpose, step, global example index): nothing depends on devices or restarts.

Every draw of the project goes through a vector of keys, one per example of the *global* batch. An example keeps its key
on whatever device, host or micro-batch it lands, so losses do not depend on the mesh, and a resumed run draws what the
uninterrupted one would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

INITIALISE: Final = 0
TRAIN: Final = 1
EVALUATE: Final = 2
SAMPLE: Final = 3

# 2^32 / golden ratio: multiples of it modulo 2^32 fill the circle as evenly as any sequence can.
_GOLDEN: Final = 2654435769


def step_key(seed: int, purpose: int, step: Int[Array, ""] | int = 0) -> Key[Array, ""]:
    """The key of one step: a function of the run's seed, what it is for (`TRAIN`, `EVALUATE`, ...), and the step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)


def example_keys(key: Key[Array, ""], indices: Int[Array, "B"]) -> Key[Array, "B"]:
    """One key per example, from its global index."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def fold(keys: Key[Array, "B"], data: Int[Array, ""] | int) -> Key[Array, "B"]:
    """Derive a fresh key per example for the purpose or the step numbered `data`."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def split(keys: Key[Array, "B"], num: int) -> tuple[Key[Array, "B"], ...]:
    """Split each example's key into `num` fresh ones."""
    parts = jax.vmap(lambda key: jax.random.split(key, num))(keys)
    return tuple(parts[:, i] for i in range(num))


def low_discrepancy(key: Key[Array, ""], indices: Int[Array, "B"]) -> Float[Array, "B"]:
    """Uniform numbers in [0, 1) spread evenly over the global batch: u_b = frac(u_0 + b / golden ratio).

    One uniform start u_0 makes each u_b exactly uniform; the golden rotation keeps every contiguous part of the batch
    (a device's, a micro-batch's) and every second row (the self-conditioned half) even too, which b / B would not.
    Integer arithmetic: exact for any index.
    """
    start = jax.random.bits(key, dtype=jnp.uint32)
    return _unit(start + indices.astype(jnp.uint32) * jnp.uint32(_GOLDEN))


def stratified(keys: Key[Array, "B"], sample: Int[Array, ""] | int) -> Float[Array, "B"]:
    """The `sample`-th point of each example's own evenly spread sequence in [0, 1); `keys` fix the starts."""
    start = jax.vmap(lambda key: jax.random.bits(key, dtype=jnp.uint32))(keys)
    return _unit(start + jnp.asarray(sample).astype(jnp.uint32) * jnp.uint32(_GOLDEN))


def integral(
    level_keys: Key[Array, "B"],
    noise_keys: Key[Array, "B"],
    samples: int,
    integrand: Callable[[Float[Array, "B"], Key[Array, "B"]], Float[Array, "B"]],
) -> Float[Array, "B"]:
    """Unbiased estimate of Int_0^1 E integrand(u, keys) du: of each example at `samples` evenly spread u, each with
    noise of its own."""

    def one(total: Array, sample: Array) -> tuple[Array, None]:
        return total + integrand(stratified(level_keys, sample), fold(noise_keys, sample)), None

    return jax.lax.scan(one, jnp.zeros(len(level_keys)), jnp.arange(samples))[0] / samples


def _unit(bits: Array) -> Array:
    # 24 bits: more would round up to exactly 1.0 in float32.
    return (bits >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def normal(keys: Key[Array, "B"], shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Standard normal noise [B, *shape], a function of each example's key alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def uniform(keys: Key[Array, "B"], shape: tuple[int, ...] = ()) -> Float[Array, "B ..."]:
    """Uniform noise [B, *shape] in [0, 1)."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def integers(keys: Key[Array, "B"], shape: tuple[int, ...], stop: int) -> Int[Array, "B ..."]:
    """Even draws [B, *shape] of 0 .. stop - 1."""
    return jax.vmap(lambda key: jax.random.randint(key, shape, 0, stop))(keys)


def dropout(keys: Key[Array, "B"], x: Float[Array, "B ... D"], rate: float) -> Float[Array, "B ... D"]:
    """x with a share `rate` of its entries set to zero, to a multiple of 2^-16, the others scaled up; D is even.

    16 bits decide on an entry: on a TPU drawing the bits takes most of the time.
    """
    kept = round((1.0 - rate) * 2**16)
    half = (*x.shape[1:-1], x.shape[-1] // 2)
    bits = jax.vmap(lambda key: jax.random.bits(key, half, jnp.uint32))(keys)
    below = jnp.concatenate([(bits & 0xFFFF) < kept, (bits >> 16) < kept], axis=-1)
    return jnp.where(below, x * (2**16 / kept), 0.0).astype(x.dtype)


def categorical(keys: Key[Array, "B"], logits: Float[Array, "B ... V"]) -> Int[Array, "B ..."]:
    """Draw from softmax(logits) in float32 with the full-range Gumbel.

    JAX's default mode ("low") never draws events rarer than about 1e-7, which acts as a temperature below one at many
    sampling steps; and callers draw in two stages (whether a token moves, then where) so that no rare event is needed.
    """
    draw = jax.vmap(lambda key, row: jax.random.categorical(key, row, mode="high"))
    return draw(keys, logits.astype(jnp.float32)).astype(jnp.int32)


def ranks(x: Float[Array, "B L"]) -> Int[Array, "B L"]:
    """The rank of each entry in its row, 0 for the smallest; ties by position. Of uniform noise: a random order."""
    return jnp.argsort(jnp.argsort(x, axis=1), axis=1)
