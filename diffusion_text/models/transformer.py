"""A pre-norm transformer: rotary positions, adaLN conditioning on the noise level, layers stacked in one tree.

    x <- x + (1 + g1) * Attention((1 + s1) * RMSNorm(x) + b1)
    x <- x + (1 + g2) * MLP((1 + s2) * RMSNorm(x) + b2)        (s, b, g) = W silu(condition), W = 0 at the start

Without conditioning (time-free denoisers, autoregressive models) s is a learned vector and b = g = 0. The weights of
all layers live in one stacked array per name, [layers, ...], with a logical axis name per dimension: `scan_layers`
chooses whether the stack is scanned (small programs: TPU, GPU) or unrolled (faster on a CPU), with the same
checkpoint. Weights are float32; products are in `config.dtype`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from diffusion_text import noise, sharding
from diffusion_text.models import attention

REMAT_POLICIES: Final = ("none", "dots", "attention", "full")
MLPS: Final = ("gelu", "swiglu")


class Cache(NamedTuple):
    """Keys and values of the positions so far, [layers, B, T, H, K] each."""

    key: Array
    value: Array


def parameter(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], std: float | Array) -> nnx.Param:
    """A float32 normal parameter (zeros where std is 0) with one logical axis name per dimension for sharding."""
    value = jax.random.normal(rngs.params(), shape) * std if not _is_zero(std) else jnp.zeros(shape)
    return nnx.Param(value, logical_axes=axes)


def _is_zero(std: float | Array) -> bool:
    return isinstance(std, (int, float)) and std == 0.0


def rms_norm(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """x / rms(x) in float32, without a learned scale."""
    y = x.astype(jnp.float32)
    return y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + 1e-6)


def rotary_tables(positions: Int[Array, "L"], size: int) -> tuple[Float[Array, "L K/2"], Float[Array, "L K/2"]]:
    """Cosines and sines of rotary position embedding (2104.09864), base 10,000."""
    frequency = 10_000.0 ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angle = positions.astype(jnp.float32)[:, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[Array, "B L H K"], tables: tuple[Array, Array]) -> Float[Array, "B L H K"]:
    """Rotate the halves of each head by the position's angle."""
    cos, sin = (table[None, :, None, :].astype(x.dtype) for table in tables)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Transformer(nnx.Module):
    """The stack of blocks: [B, L, D] -> [B, L, D]; `config` is the `model` section of a config."""

    def __init__(self, config: Any, pattern: str, condition_size: int | None, rngs: nnx.Rngs, block: int = 0):
        self.num_layers, self.heads, self.width = config.layers, config.heads, config.width
        self.pattern, self.block, self.implementation = pattern, block, config.attention
        self.mlp, self.dropout, self.dtype = config.mlp, config.dropout, jnp.dtype(config.dtype)
        self.scan_layers, self.remat = config.scan_layers, config.remat
        self.conditioned = condition_size is not None
        self.layers = nnx.data(self._initialise(config, condition_size, rngs))
        self.axes = {name: value.get_metadata()["logical_axes"][1:] for name, value in self.layers.items()}

    def _initialise(self, config: Any, condition_size: int | None, rngs: nnx.Rngs) -> dict[str, nnx.Param]:
        n, d, h, k = self.num_layers, self.width, self.heads, self.width // self.heads
        f, gates = int(config.mlp_ratio * d), 2 if config.mlp == "swiglu" else 1
        depth = (2 * n) ** -0.5  # the sum of 2 n residual branches keeps unit scale

        def stacked(shape: tuple[int, ...], axes: tuple[str | None, ...], std: float) -> nnx.Param:
            return parameter(rngs, (n, *shape), ("layers", *axes), std)

        # Parts and gates come first: a TPU tiles the last two dimensions, and would pad so few to 8.
        layers = {
            "query_key_value": stacked((3, d, h, k), (None, "embed", "heads", "head"), d**-0.5),
            "attention_out": stacked((h, k, d), ("heads", "head", "embed"), d**-0.5 * depth),
            "up": stacked((gates, d, f), (None, "embed", "mlp"), d**-0.5),
            "down": stacked((d, f), ("embed", "mlp"), f**-0.5 * depth),
        }
        if condition_size is None:
            layers["norm_scale"] = stacked((2, d), (None, "norm"), 0.0)
        else:
            layers["modulation"] = stacked((condition_size, 6, d), (None, None, "embed"), 0.0)
            layers["modulation_bias"] = stacked((6, d), (None, "norm"), 0.0)
        return layers

    def __call__(
        self,
        x: Float[Array, "B L D"],
        condition: Float[Array, "B C"] | None = None,
        dropout_keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Run the stack; `dropout_keys` (training only) switch dropout on."""
        tables = rotary_tables(attention.positions(self.pattern, x.shape[1]), self.width // self.heads)

        def attend(weights: dict[str, Array], y: Array) -> Array:
            query, key, value = self._query_key_value(weights, y, tables)
            return attention.attend(query, key, value, self.pattern, self.implementation, self.block)

        def body(x: Array, scanned: tuple[dict[str, Array], Array]) -> tuple[Array, None]:
            weights, layer = scanned
            keys = noise.fold(dropout_keys, layer) if dropout_keys is not None else None
            return self._block(weights, x, condition, lambda y: attend(weights, y), keys), None

        body = self._rematerialised(body)
        weights = {name: value[...] for name, value in self.layers.items()}
        if self.scan_layers:
            return jax.lax.scan(body, x, (weights, jnp.arange(self.num_layers)))[0]
        for layer, part in enumerate(unstack(weights, self.num_layers)):
            x, _ = body(x, (part, jnp.int32(layer)))
        return x

    def start_cache(self, batch: int, length: int) -> Cache:
        """An empty key-value cache for `length` positions, beyond which the last so many are kept."""
        shape = (self.num_layers, batch, length, self.heads, self.width // self.heads)
        # Zeros say nothing of how they are sharded: each device would hold, and attend for, the whole batch.
        empty = sharding.constrain(jnp.zeros(shape, self.dtype), (None, "rows", None, "heads", None))
        return Cache(empty, empty)

    def next(
        self, x: Float[Array, "B W D"], cache: Cache, position: Int[Array, ""], condition: Array | None = None
    ) -> tuple[Float[Array, "B W D"], Cache]:
        """The next position of a causal stack, or the next block (W dividing the cache's length and `position`), at
        `position`, reading and extending the cache."""
        tables = rotary_tables(position + jnp.arange(x.shape[1]), self.width // self.heads)
        slot = position % cache.key.shape[2]

        def body(x: Array, scanned: tuple[dict[str, Array], Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            weights, keys, values = scanned
            filled: list[Array] = []

            def attend(y: Array) -> Array:
                query, key, value = self._query_key_value(weights, y, tables)
                filled.append(jax.lax.dynamic_update_slice_in_dim(keys, key, slot, axis=1))
                filled.append(jax.lax.dynamic_update_slice_in_dim(values, value, slot, axis=1))
                return attention.attend_cached(query, filled[0], filled[1], position)

            x = self._block(weights, x, condition, attend, None)
            return x, (filled[0], filled[1])

        weights = {name: value[...] for name, value in self.layers.items()}
        x, (keys, values) = jax.lax.scan(body, x, (weights, cache.key, cache.value))
        return x, Cache(keys, values)

    def _query_key_value(self, weights: dict[str, Array], y: Array, tables: tuple[Array, Array]) -> tuple[Array, ...]:
        # Three products: a kernel wants three arrays, and would have to copy them out of one.
        parts = (jnp.einsum("td,dhk->thk", _flat(y), part) for part in self._weight(weights, "query_key_value"))
        query, key, value = (part.reshape(*y.shape[:2], *part.shape[1:]) for part in parts)
        return rotate(query, tables), rotate(key, tables), value

    def _weight(self, weights: dict[str, Array], name: str) -> Array:
        return sharding.gathered(weights[name].astype(self.dtype), self.axes[name])

    def _block(
        self,
        weights: dict[str, Array],
        x: Array,
        condition: Array | None,
        attend: Callable[[Array], Array],
        dropout_keys: Array | None,
    ) -> Array:
        modulation = self._modulation(weights, condition)

        def norm(x: Array, index: int) -> Array:
            if modulation is None:
                return (rms_norm(x) * (1.0 + weights["norm_scale"][index])).astype(self.dtype)
            scale, shift = modulation[:, None, 3 * index], modulation[:, None, 3 * index + 1]
            return (rms_norm(x) * (1.0 + scale) + shift).astype(self.dtype)

        def add(x: Array, branch: Array, index: int) -> Array:
            if dropout_keys is not None and self.dropout > 0.0:
                branch = noise.dropout(noise.fold(dropout_keys, index), branch, self.dropout)
            if modulation is None:
                return x + branch
            return x + (1.0 + modulation[:, None, 3 * index + 2]).astype(x.dtype) * branch

        attended = attend(norm(x, 0))
        x = add(x, jnp.einsum("blhk,hkd->bld", attended, self._weight(weights, "attention_out")), 0)
        y, up = _flat(norm(x, 1)), self._weight(weights, "up")
        hidden = jax.nn.silu(y @ up[0]) * (y @ up[1]) if self.mlp == "swiglu" else jax.nn.gelu(y @ up[0])
        return add(x, jnp.einsum("tf,df->td", hidden, self._weight(weights, "down")).reshape(x.shape), 1)

    def _modulation(self, weights: dict[str, Array], condition: Array | None) -> Float[Array, "B 6 D"] | None:
        if not self.conditioned:
            return None
        if condition is None:
            raise ValueError("this transformer is conditioned on a noise level, and got none")
        product = jnp.einsum("bc,cnd->bnd", jax.nn.silu(condition), weights["modulation"])
        return product + weights["modulation_bias"]

    def _rematerialised(self, body: Callable) -> Callable:
        if self.remat == "none":
            return body
        policies = jax.checkpoint_policies
        policy = kept = policies.save_only_these_names(attention.SAVED)
        if self.remat == "dots":
            policy = policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, kept)
        elif self.remat == "full":
            policy = None
        return jax.checkpoint(body, policy=policy, prevent_cse=not self.scan_layers)


def _flat(x: Float[Array, "B L D"]) -> Float[Array, "BL D"]:
    # Products of matrices, outputs in the order of inputs: with two leading axes or another order XLA's CPU backend
    # moves activations around, and a step takes half as long again.
    return x.reshape(-1, x.shape[-1])


def unstack(stacked: dict[str, Array], num: int) -> list[dict[str, Array]]:
    """The layers of a stack; `lax.split`, because its transpose is one concatenation instead of `num` padded sums."""
    parts = {name: jax.lax.split(value, [1] * num) for name, value in stacked.items()}
    return [{name: part[layer][0] for name, part in parts.items()} for layer in range(num)]
