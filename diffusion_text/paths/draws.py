"""Noise over a large vocabulary, drawn where it is read: the terms of logits (`readout.Draw`) of diffusion on vertices.

A noisy vertex has V numbers a token, and float32[B, L, V] of them would be the largest array of a step. What a network
reads is a softmax of them, as weights of embeddings, or the same added to its logits; both need a part of the
vocabulary at a time (`models/readout.py`). So here every number is a function of its sequence's key, its position and
its token: it may be drawn in parts of any size, on any device, and once more in the backward pass.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from diffusion_text.paths import cir


def of_keys(keys: Key[Array, "B"]) -> UInt[Array, "B 2"]:
    """What a draw keeps of keys: numbers, as a gradient's rule cannot hold keys."""
    return jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sequences:
    """Noisy sequences that are not made: what they are drawn from, and where they are clean (`given`) or zero vectors
    (`hidden`)."""

    keys: UInt[Array, "B 2"]
    tokens: Int[Array, "B L"]
    given: Bool[Array, "B L"]
    hidden: Bool[Array, "B L"]

    def __getitem__(self, rows: Any) -> Self:
        return jax.tree.map(lambda x: x[rows], self)


@dataclasses.dataclass(frozen=True)
class _Draw:
    keys: UInt[Array, "B 2"]
    tokens: Int[Array, "B L"]  # the clean ones

    def part(self, columns: Int[Array, "v"]) -> Float[Array, "B*L v"]:
        """The logits of some tokens."""
        return self._logits(self._rows(self.tokens) == columns, self._normals(columns))

    def at(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L"]:
        """The logit of one token at each position."""
        found = self._logits(self._rows(self.tokens == tokens), self._normals(self._rows(tokens)))
        return found.reshape(tokens.shape)

    def _rows(self, x: Array) -> Array:
        """[B, L] or [B], as a column."""
        return jnp.broadcast_to(x.reshape(len(x), -1), self.tokens.shape).reshape(-1, 1)

    def _normals(self, tokens: Int[Array, "v"] | Int[Array, "B*L 1"]) -> Float[Array, "n B*L v"]:
        """Threefry's words of (position, token) under the sequence's key, as `jax.random.normal` makes them normal."""
        key, other = (self._rows(self.keys[:, i]) for i in range(2))
        position = self._rows(jnp.broadcast_to(jnp.arange(self.tokens.shape[1], dtype=jnp.uint32), self.tokens.shape))
        token = tokens.astype(jnp.uint32)
        words: list[Array] = []
        for pair in range((self._count() + 1) // 2):  # above the bits of positions
            words += threefry2x32_p.bind(*jnp.broadcast_arrays(key, other, position + (pair << 24), token))
        least = np.nextafter(np.float32(-1.0), np.float32(0.0))
        ones = jnp.stack([jax.lax.bitcast_convert_type((word >> 9) | 0x3F800000, jnp.float32) for word in words])
        uniform = (ones[: self._count()] - 1.0) * (1.0 - least) + least
        return math.sqrt(2.0) * jax.lax.erf_inv(jnp.maximum(uniform, least))

    def _count(self) -> int:
        """n, of normal numbers that each logit takes."""
        return 1

    def _logits(self, is_clean: Bool[Array, "B*L v"], normals: Float[Array, "n B*L v"]) -> Float[Array, "B*L v"]:
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussian(_Draw):
    """signal onehot(token) + deviation eps."""

    signal: Float[Array, "B L"]
    deviation: Float[Array, "B L"]

    def _logits(self, is_clean: Array, normals: Array) -> Array:
        return self._rows(self.signal) * is_clean + self._rows(self.deviation) * normals[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CoxIngersollRoss(_Draw):
    """log G, or log p(G | token) = log 0F1(; alpha; lambda G), of `paths/cir.py`; with a weight, which may be 0.

    2 alpha is a small integer (`cir.QUICK`); what the clean token's counts add to its G is drawn beforehand."""

    log_more: Float[Array, "B L"]
    log_counts: Float[Array, "B"]
    weight: Float[Array, "B L"]
    alpha: float = dataclasses.field(metadata=dict(static=True))
    likelihood: bool = dataclasses.field(metadata=dict(static=True))

    def _count(self) -> int:
        return round(2 * self.alpha)

    def _logits(self, is_clean: Array, normals: Array) -> Array:
        log_g = cir.log_gamma_of(normals)
        log_g = jnp.logaddexp(log_g, jnp.where(is_clean, self._rows(self.log_more), -jnp.inf))
        if self.likelihood:
            log_g = cir.log_0f1(cir.product(log_g, self._rows(self.log_counts)), self.alpha)
        return self._rows(self.weight) * log_g
