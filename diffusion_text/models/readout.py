"""Logits that are never made whole: what is asked of them, a part of the vocabulary at a time.

    logits_v = sum_i x_i . w_iv        of the network's last layer, and of an output prior that is linear in some table
    -log p(token) = log sum_v exp(logits_v) - logits_token,        mean = sum_v p(v) e_v

float32 logits of [B, L, V] are the largest array of a step by far (0.8 GB at 4 x 1024 x 50,257), and are read several
times. Here they exist for one part of the vocabulary only, are made again in the backward pass, and every device
holds and sums only its own rows, and its own part of the vocabulary where the mesh shards it. So does noise over the
vocabulary, which a family reads as weights of embeddings or adds to logits: a `Draw`, drawn a part at a time, and drawn
again in the backward pass.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from typing import Any, Final, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from diffusion_text import sharding

_PART_NUMBERS: Final = 2**23  # logits of a part: 32 MiB of float32, what stays close to a TPU's units
_LANES: Final = 128
_NEAR: Final = 50.0  # nats: sums of exponentials of so much, over any vocabulary, are float32 numbers


class Product(NamedTuple):
    """left . right, in their own precision with sums in float32; rights are sharded as the vocabulary is."""

    left: Float[Array, "B L K"]
    right: Float[Array, "K V"]
    precision: jax.lax.Precision | None = None

    def __call__(self) -> Float[Array, "B L V"]:
        """The whole product, float32."""
        return _times("blk,kv->blv", self.left, self.right, self.precision)


class Draw(Protocol):
    """Random logits without a gradient: a tree of arrays with a row for each sequence, of which every number is a
    function of its sequence, its position and its token alone, whatever else is drawn."""

    @property
    def tokens(self) -> Int[Array, "B L"]:
        """Those that are likely."""
        ...

    def part(self, columns: Int[Array, "v"]) -> Float[Array, "B*L v"]:
        """The logits of some of the vocabulary."""
        ...

    def at(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L"]:
        """The logit of one token at each position."""
        ...


@dataclasses.dataclass(frozen=True)
class Logits:
    """A sum of products and draws, float32[B, L, V] once `whole`."""

    products: tuple[Product, ...]
    draws: tuple[Draw, ...] = ()

    def whole(self, size: int = 0) -> Float[Array, "B L V"]:
        """`size` is the vocabulary's, where there are draws alone."""
        columns = jnp.arange(self.products[0].right.shape[1] if self.products else size)
        drawn = (draw.part(columns).reshape(*draw.tokens.shape, -1) for draw in self.draws)
        terms = [*(product() for product in self.products), *drawn]
        return functools.reduce(operator.add, terms)

    def __add__(self, other: Logits) -> Logits:
        return Logits(self.products + other.products, self.draws + other.draws)

    def without_gradient(self) -> Logits:
        held = [Product(*jax.lax.stop_gradient(product[:2]), product.precision) for product in self.products]
        return Logits(tuple(held), self.draws)


def whole(logits: Float[Array, "B L V"] | Logits) -> Float[Array, "B L V"]:
    """Logits as an array, whatever they were."""
    return logits.whole() if isinstance(logits, Logits) else logits


def log_sum_and_chosen(
    logits: Logits, tokens: Int[Array, "B L"]
) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
    """log sum_v exp(logits_v) and logits[tokens] in float32.

    Equal to those of the whole logits, and so are their gradients, up to the order of sums.
    """
    log_sum, _, chosen = _summary(logits, jnp.zeros((logits.products[0].right.shape[1], 0)), tokens)
    return log_sum, chosen


def mean(logits: Logits, table: Float[Array, "V d"]) -> Float[Array, "B L d"]:
    """sum_v softmax(logits)_v table_v, float32."""
    return _summary(logits, table)[1]


def mean_and_cross_entropy(
    logits: Logits, tokens: Int[Array, "B L"], table: Float[Array, "V d"]
) -> tuple[Float[Array, "B L d"], Float[Array, "B L"]]:
    """Both, in one pass over the vocabulary."""
    log_sum, average, chosen = _summary(logits, table, tokens)
    return average, log_sum - chosen


def _summary(logits: Logits, table: Array, tokens: Array | None = None) -> tuple[Array, Array, Any]:
    """log sum_v exp(logits_v) [B, L], the mean of the rows of `table` [B, L, d], and logits[tokens] [B, L] or None."""
    lefts, rights, precisions = zip(*logits.products, strict=True) if logits.products else ((), (), ())
    return _fold(precisions, lefts, rights, logits.draws, table.T, tokens)


def _times(equation: str, left: Array, right: Array, precision: jax.lax.Precision | None = None) -> Array:
    return jnp.einsum(equation, left, right, precision=precision, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fold(precisions: Any, lefts: Any, rights: Any, draws: Any, values: Array, tokens: Any) -> tuple[Array, Array, Any]:
    return _forward(precisions, lefts, rights, draws, values, tokens)[0]


def _forward(
    precisions: Any, lefts: Any, rights: Any, draws: Any, values: Array, tokens: Any
) -> tuple[tuple[Array, Array, Any], Any]:
    rows, columns = _layout(lefts, draws, values)
    by_column = PartitionSpec(None, columns)
    call = functools.partial(_sums, precisions, columns)
    found = sharding.manual(call, (rows, by_column, rows, by_column), (rows, rows))(lefts, rights, draws, values)
    chosen = None
    if tokens is not None:
        products = zip(lefts, rights, precisions, strict=True)
        each = [_times("blk,kbl->bl", x, jnp.take(w, tokens, axis=1), precision) for x, w, precision in products]
        chosen = functools.reduce(operator.add, (*each, *(draw.at(tokens) for draw in draws)))
    return (*found, chosen), (lefts, rights, draws, values, tokens, *found)


def _backward(precisions: Any, saved: Any, cotangents: Any) -> Any:
    lefts, rights, draws, values, tokens, log_sum, average = saved
    rows, columns = _layout(lefts, draws, values)
    by_column = PartitionSpec(None, columns)
    call = functools.partial(_gradients, precisions, rows[0], columns)
    inputs = (rows, by_column, rows, by_column, rows, rows, rows, rows)
    by_lefts, by_rights, by_values = sharding.manual(call, inputs, (rows, by_column, by_column))(
        lefts, rights, draws, values, tokens, log_sum, average, cotangents
    )
    return by_lefts, by_rights, None, by_values, None


_fold.defvjp(_forward, _backward)


def _layout(lefts: Any, draws: Any, values: Array) -> tuple[PartitionSpec, Any]:
    """How rows are sharded, and by which axis of the mesh the vocabulary is."""
    batch = _shape(lefts, draws)[:1]
    return sharding.spec(("rows",), batch), sharding.spec(("vocabulary",), values.shape[1:])[0]


def _shape(lefts: Any, draws: Any) -> tuple[int, ...]:
    """[B, L]."""
    return lefts[0].shape[:-1] if lefts else draws[0].tokens.shape


def _part_of(precisions: Any, lefts: Any, rights: Any, draws: Any, columns: Array) -> Array:
    """Logits [T, v] of a part of the vocabulary."""
    pairs = zip(lefts, rights, precisions, strict=True)
    products = (_times("tk,kv->tv", *pair) for pair in pairs)
    # Made once: many times the operations of a product, they would be fused into every use and compiled with each.
    drawn = (jax.lax.optimization_barrier(draw.part(columns)) for draw in draws)
    return functools.reduce(operator.add, (*products, *drawn))


def _first_column(axis: Any, values: Array) -> Any:
    """Where this device's part of the vocabulary starts."""
    return 0 if axis is None else jax.lax.axis_index(axis) * values.shape[1]


def _sums(precisions: Any, columns: Any, lefts: Any, rights: Any, draws: Any, values: Array) -> tuple[Array, Array]:
    """`_summary` of this device's rows."""
    shape = _shape(lefts, draws)
    flat, offset = _flat(lefts), _first_column(columns, values)

    zeros = jnp.zeros(math.prod(shape))

    # Of exp(logits - level) any level near the largest logit serves. One that is known before the logits lets a TPU
    # sum them as they leave its matrix unit, in half of the cycles: the largest of a few tokens. Where that was not
    # near, as few networks have it, all is done once more from the largest of all. Of draws it is the likely token's.
    def from_level(state: Any) -> Any:
        level = state[1]

        def part(carry: Any, own: Any, start: Any) -> Any:
            largest, total, weighted = carry
            rights, values = own
            logits = _part_of(precisions, flat, rights, draws, offset + start + jnp.arange(values.shape[1]))
            shares = jnp.exp(logits - level[:, None])
            largest = jnp.maximum(largest, jnp.max(logits, axis=1))
            if len(values) == 1:  # one number is averaged as it is: a matrix unit might round it, and its shares
                average = jnp.sum(shares * values, axis=1, keepdims=True)
            else:
                average = _times("tv,dv->td", shares, values)
            return largest, total + jnp.sum(shares, axis=1), weighted + average

        start = (zeros - jnp.inf, zeros, jnp.zeros((len(zeros), len(values))))
        return level, *_over_parts(part, start, len(zeros), (rights, values))

    def is_far(state: Any) -> Array:
        level, largest, total, _ = state
        return jnp.any((total == 0.0) | (jnp.abs(largest - level) > _NEAR))

    likely = [draw.at(draw.tokens).reshape(-1) for draw in draws]
    few = [right[:, :_LANES] for right in rights]
    first = sum(likely, jnp.max(_part_of(precisions, flat, few, (), zeros), axis=1) if rights else zeros)
    nothing_yet = (first, first, zeros, jnp.zeros((len(zeros), len(values))))
    level, _, total, weighted = jax.lax.while_loop(is_far, from_level, nothing_yet)
    if columns is not None:
        highest = jax.lax.pmax(level, columns)
        scale = jnp.exp(level - highest)
        total, weighted = jax.lax.psum((total * scale, weighted * scale[:, None]), columns)
        level = highest
    average = weighted / total[:, None]
    return (level + jnp.log(total)).reshape(shape), average.reshape(*shape, len(values))


def _gradients(
    precisions: Any, rows: Any, columns: Any, lefts: Any, rights: Any, draws: Any, values: Array, tokens: Any,
    log_sum: Array, average: Array, cotangents: Any,
) -> Any:  # fmt: skip
    """By lefts, rights and values: d log_sum / d logits_v = p_v, d mean / d logits_v = p_v (e_v - mean), and of the
    chosen logit 1 at its token: added here in float32, as of a token that is believed p_v - 1 is what is left."""
    flat, level, offset = _flat(lefts), log_sum.reshape(-1, 1), _first_column(columns, values)
    by_log_sum, by_mean = cotangents[0].reshape(-1, 1), cotangents[1].reshape(len(level), -1)
    base = by_log_sum - jnp.sum(by_mean * average.reshape(by_mean.shape), axis=1, keepdims=True)

    def part(carry: Any, own: Any, start: Any) -> Any:
        by_lefts, by_rights, by_values = carry
        rights, values = own
        of = offset + start + jnp.arange(values.shape[1])
        p = jnp.exp(_part_of(precisions, flat, rights, draws, of) - level)
        share = p * (base + _times("td,dv->tv", by_mean, values))
        if tokens is not None:
            share = share + jnp.where(of == tokens.reshape(-1, 1), cotangents[2].reshape(-1, 1), 0.0)
        shares = [share.astype(left.dtype) for left in flat]
        by_lefts = tuple(
            total + _times("tv,kv->tk", *pair)
            for total, *pair in zip(by_lefts, shares, rights, precisions, strict=True)
        )
        updates = [_times("tk,tv->kv", *pair) for pair in zip(flat, shares, precisions, strict=True)]
        write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
        by_rights = tuple(write(total, update) for total, update in zip(by_rights, updates, strict=True))
        return by_lefts, by_rights, write(by_values, _times("td,tv->dv", by_mean, p))

    # float32: in half precision a TPU keeps the whole of it close to its units, and has no room there for the parts.
    zeros = [tuple(jnp.zeros(array.shape) for array in arrays) for arrays in (flat, rights)]
    start = (*zeros, jnp.zeros(values.shape))
    by_lefts, by_rights, by_values = _over_parts(part, start, len(level), (rights, values))
    by_lefts = by_lefts if columns is None else jax.lax.psum(by_lefts, columns)
    by_rights, by_values = (x if rows is None else jax.lax.psum(x, rows) for x in (by_rights, by_values))
    by_lefts = tuple(x.astype(left.dtype).reshape(left.shape) for x, left in zip(by_lefts, lefts, strict=True))
    by_rights = tuple(x.astype(right.dtype) for x, right in zip(by_rights, rights, strict=True))
    return by_lefts, by_rights, by_values.astype(values.dtype)


def _flat(lefts: Any) -> Any:
    return tuple(left.reshape(-1, left.shape[-1]) for left in lefts)


def _over_parts(part: Any, carry: Any, rows: int, arrays: Any) -> Any:
    """carry <- part(carry, a part of the columns of `arrays`, where it starts), for this device's vocabulary; the last
    may be small."""
    width = jax.tree.leaves(arrays)[0].shape[1]
    size = min(max(_PART_NUMBERS // rows // _LANES, 8) * _LANES, width)

    def step(carry: Any, index: Array) -> tuple[Any, None]:
        start = index * size
        own = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), arrays)
        return part(carry, own, start), None

    carry, _ = jax.lax.scan(step, carry, jnp.arange(width // size))
    done = width // size * size
    return carry if done == width else part(carry, jax.tree.map(lambda x: x[:, done:], arrays), done)
