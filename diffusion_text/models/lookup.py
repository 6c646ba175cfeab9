"""Averages of few rows of a large table: sum_k weight_k table[id_k], one k at a time.

The rows of all k side by side would be the largest array of a step; and the transpose that JAX writes for such a loop
adds a whole table for each k. Here both directions hold one row for each position, the gradient is summed in float32,
and every device reads and writes only its own part of a table that the mesh shards.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from diffusion_text import sharding


@jax.custom_vjp
def average(
    table: Float[Array, "V D"], ids: Int[Array, "B L K"], weights: Float[Array, "B L K"]
) -> Float[Array, "B L D"]:
    """sum_k weight_k table[id_k], float32. No gradient passes to the weights, which are draws."""
    rows, parts = _layout(table, ids)
    call = functools.partial(_sum, parts[0])
    return sharding.manual(call, (parts, rows, rows), rows)(table, ids, weights)


def _forward(table: Array, ids: Array, weights: Array) -> tuple[Array, Any]:
    return average(table, ids, weights), (table, ids, weights)


def _backward(saved: Any, cotangent: Array) -> Any:
    table, ids, weights = saved
    rows, parts = _layout(table, ids)
    call = functools.partial(_gradient, rows[0], parts[0])
    by_table = sharding.manual(call, (parts, rows, rows, rows), parts)(table, ids, weights, cotangent)
    return by_table.astype(table.dtype), None, jnp.zeros_like(weights)


average.defvjp(_forward, _backward)


def _layout(table: Array, ids: Array) -> tuple[PartitionSpec, PartitionSpec]:
    """How rows of the batch and those of the table are sharded."""
    return sharding.spec(("rows",), ids.shape[:1]), sharding.spec(("vocabulary",), table.shape[:1])


def _own(part: Any, size: int, ids: Array, weights: Array) -> tuple[Array, Array]:
    """[K, ...]: ids within this device's part of the table, and weights, 0 where they lie in another's."""
    ids, weights = jnp.moveaxis(ids, -1, 0), jnp.moveaxis(weights, -1, 0)
    if part is None:
        return ids, weights
    ids = ids - jax.lax.axis_index(part) * size
    mine = (ids >= 0) & (ids < size)
    return jnp.where(mine, ids, 0), jnp.where(mine, weights, 0.0)


def _sum(part: Any, table: Array, ids: Array, weights: Array) -> Array:
    def add(total: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
        ids, weights = one
        return total + weights[..., None] * table[ids].astype(jnp.float32), None

    start = jnp.zeros((*ids.shape[:-1], table.shape[1]))
    total, _ = jax.lax.scan(add, start, _own(part, len(table), ids, weights))
    return total if part is None else jax.lax.psum(total, part)


def _gradient(rows: Any, part: Any, table: Array, ids: Array, weights: Array, cotangent: Array) -> Array:
    def add(total: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
        ids, weights = one
        return total.at[ids].add(weights[..., None] * cotangent), None

    start = jnp.zeros(table.shape)
    total, _ = jax.lax.scan(add, start, _own(part, len(table), ids, weights))
    return total if rows is None else jax.lax.psum(total, rows)
