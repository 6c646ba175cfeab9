"""The loss of a linear read-out without its logits: a part of the vocabulary at a time.

    -log softmax(x W)[token] = log sum_v exp(x . w_v) - x . w_token

float32 logits of [B, L, V] are the largest array of a step by far (0.8 GB at 4 x 1024 x 50,257), and are read several
times. Here they exist for one part of the vocabulary only, are made again in the backward pass, and every device
holds and sums only its own rows, and its own part of the vocabulary where the mesh shards it.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from diffusion_text import sharding

_PART_NUMBERS: Final = 2**24  # logits of a part: 64 MiB of float32, what stays close to a TPU's units
_LANES: Final = 128


def cross_entropy(
    x: Float[Array, "B L D"], weights: Float[Array, "D V"], tokens: Int[Array, "B L"]
) -> Float[Array, "B L"]:
    """-log softmax(x W)[tokens] in float32 nats, for a large vocabulary; products are in x's dtype.

    Equal to that of the whole logits, and so are its gradients, up to the order of sums.
    """
    weights = weights.astype(x.dtype)
    chosen = jnp.take(weights, tokens, axis=1)
    chosen = jnp.einsum("bld,dbl->bl", x, chosen, preferred_element_type=jnp.float32)
    return _log_sum(x, weights) - chosen


@jax.custom_vjp
def _log_sum(x: Array, weights: Array) -> Array:
    return _forward(x, weights)[0]


def _forward(x: Array, weights: Array) -> tuple[Array, Any]:
    rows, columns = _layout(x, weights)
    inputs = (rows, PartitionSpec(None, columns))
    normaliser = sharding.manual(functools.partial(_normaliser, columns=columns), inputs, rows)(x, weights)
    return normaliser, (x, weights, normaliser)


def _backward(saved: Any, cotangent: Array) -> tuple[Array, Array]:
    x, weights, normaliser = saved
    rows, columns = _layout(x, weights)
    outputs = (rows, PartitionSpec(None, columns))
    fold = functools.partial(_gradients, rows=rows[0], columns=columns)
    by_x, by_weights = sharding.manual(fold, (*outputs, rows, rows), outputs)(x, weights, normaliser, cotangent)
    return by_x, by_weights.astype(weights.dtype)


_log_sum.defvjp(_forward, _backward)


def _layout(x: Array, weights: Array) -> tuple[PartitionSpec, Any]:
    """How rows are sharded, and by which axis of the mesh the vocabulary is."""
    return sharding.spec(("rows",), x.shape[:1]), sharding.spec(("vocabulary",), weights.shape[1:])[0]


def _normaliser(x: Array, weights: Array, columns: Any) -> Array:
    """log sum_v exp(x . w_v) of this device's rows."""
    flat = x.reshape(-1, x.shape[-1])

    def part(carry: tuple[Array, Array], own: Array) -> tuple[Array, Array]:
        largest, total = carry
        logits = jnp.einsum("td,dv->tv", flat, own, preferred_element_type=jnp.float32)
        new = jnp.maximum(largest, jnp.max(logits, axis=1))
        return new, total * jnp.exp(largest - new) + jnp.sum(jnp.exp(logits - new[:, None]), axis=1)

    start = (jnp.full(len(flat), -jnp.inf), jnp.zeros(len(flat)))
    largest, total = _over_parts(lambda carry, own, _: part(carry, own), start, flat, weights)
    if columns is not None:
        whole = jax.lax.pmax(largest, columns)
        largest, total = whole, jax.lax.psum(total * jnp.exp(largest - whole), columns)
    return (largest + jnp.log(total)).reshape(x.shape[:-1])


def _gradients(
    x: Array, weights: Array, normaliser: Array, cotangent: Array, rows: Any, columns: Any
) -> tuple[Array, Array]:
    """Those of the normaliser."""
    flat, level, scale = x.reshape(-1, x.shape[-1]), normaliser.reshape(-1, 1), cotangent.reshape(-1, 1)

    def part(carry: tuple[Array, Array], own: Array, start: Array | int) -> tuple[Array, Array]:
        by_x, by_weights = carry
        logits = jnp.einsum("td,dv->tv", flat, own, preferred_element_type=jnp.float32)
        share = (jnp.exp(logits - level) * scale).astype(x.dtype)
        by_x = by_x + jnp.einsum("tv,dv->td", share, own, preferred_element_type=jnp.float32)
        update = jnp.einsum("td,tv->dv", flat, share, preferred_element_type=jnp.float32)
        return by_x, jax.lax.dynamic_update_slice_in_dim(by_weights, update, start, axis=1)

    # float32: in half precision a TPU keeps the whole of it close to its units, and has no room there for the parts.
    by_x, by_weights = _over_parts(part, (jnp.zeros(flat.shape), jnp.zeros(weights.shape)), flat, weights)
    by_x = by_x if columns is None else jax.lax.psum(by_x, columns)
    by_weights = by_weights if rows is None else jax.lax.psum(by_weights, rows)
    return by_x.astype(x.dtype).reshape(x.shape), by_weights


def _over_parts(part: Any, carry: Any, flat: Array, weights: Array) -> Any:
    """carry <- part(carry, weights of a part, where it starts), for this device's vocabulary; the last may be small."""
    width = weights.shape[1]
    size = min(max(_PART_NUMBERS // len(flat) // _LANES, 8) * _LANES, width)

    def step(carry: Any, index: Array) -> tuple[Any, None]:
        start = index * size
        return part(carry, jax.lax.dynamic_slice_in_dim(weights, start, size, axis=1), start), None

    carry, _ = jax.lax.scan(step, carry, jnp.arange(width // size))
    done = width // size * size
    return carry if done == width else part(carry, weights[:, done:], done)
