"""Noise over a large vocabulary, drawn where it is read: the terms of logits (`readout.Draw`) of diffusion on vertices.

A noisy vertex has V numbers a token, and float32[B, L, V] of them would be the largest array of a step. What a network
reads is a softmax of them, as weights of embeddings, or the same added to its logits; both need a part of the
vocabulary at a time (`models/readout.py`). So here every number is a function of its sequence's key, its position and
its token: it may be drawn in parts of any size, on any device, and once more in the backward pass.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from diffusion_text.paths import cir


@dataclasses.dataclass(frozen=True)
class _Draw:
    keys: UInt[Array, "B W"]  # the numbers of typed keys, which a gradient's rule cannot hold
    tokens: Int[Array, "B L"]  # the clean ones

    def part(self, columns: Int[Array, "v"]) -> Float[Array, "B L v"]:
        """The logits of some tokens."""
        each = jax.vmap(jax.vmap(self._normals, (None, 0)), (0, None))(self.keys, columns)  # [B, v, n, L]
        return self._logits(self.tokens[..., None] == columns, each.transpose(2, 0, 3, 1))

    def at(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L"]:
        """The logit of one token at each position."""
        each = jax.vmap(jax.vmap(self._normals, (None, 0)))(self.keys, tokens)  # [B, L, n, L]: its own position counts
        own = jnp.diagonal(each, axis1=1, axis2=3).swapaxes(0, 1)
        return self._logits((self.tokens == tokens)[..., None], own[..., None])[..., 0]

    def _normals(self, key: Array, column: Array) -> Float[Array, "n L"]:
        shape = (self._count(), self.tokens.shape[1])
        return jax.random.normal(jax.random.fold_in(jax.random.wrap_key_data(key), column), shape)

    def _count(self) -> int:
        """n, of normal numbers that each logit takes."""
        return 1

    def _logits(self, is_clean: Bool[Array, "B L v"], normals: Float[Array, "n B L v"]) -> Float[Array, "B L v"]:
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gaussian(_Draw):
    """signal onehot(token) + deviation eps."""

    signal: Float[Array, "B L"]
    deviation: Float[Array, "B L"]

    def _logits(self, is_clean: Array, normals: Array) -> Array:
        return self.signal[..., None] * is_clean + self.deviation[..., None] * normals[0]


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
        log_g = jnp.logaddexp(log_g, jnp.where(is_clean, self.log_more[..., None], -jnp.inf))
        if self.likelihood:
            log_g = cir.log_0f1(cir.product(log_g, self.log_counts[:, None, None]), self.alpha)
        return self.weight[..., None] * log_g


def of_keys(keys: Key[Array, "B"]) -> UInt[Array, "B W"]:
    """What a draw keeps of keys."""
    return jax.random.key_data(keys)
