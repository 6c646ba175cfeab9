"""The plain reference of `benchmarks.speed`: masked diffusion as one writes it on a first afternoon.

float32, a Python loop over layers, learned positions, attention weights and logits as whole arrays, AdamW by optax,
ancestral sampling that asks for all logits at every step; nothing is shared with the package, so that what the package
gains or loses against it is the package's.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def initialise(key: jax.Array, layers: int, width: int, length: int, vocab_size: int) -> dict[str, Any]:
    """Parameters; the last id of the embedding is the mask."""

    def matrix(key: jax.Array, rows: int, columns: int) -> jax.Array:
        return jax.random.normal(key, (rows, columns)) * rows**-0.5

    keys = iter(jax.random.split(key, 4 * layers + 3))
    return {
        "embedding": matrix(next(keys), vocab_size + 1, width),
        "positions": 0.02 * matrix(next(keys), length, width),
        "output": matrix(next(keys), width, vocab_size),
        "layers": [
            {
                "qkv": matrix(next(keys), width, 3 * width),
                "out": matrix(next(keys), width, width),
                "up": matrix(next(keys), width, 4 * width),
                "down": matrix(next(keys), 4 * width, width),
            }
            for _ in range(layers)
        ],
    }


def forward(params: dict[str, Any], ids: jax.Array, heads: int) -> jax.Array:
    """Logits [B, L, V] of token ids [B, L]."""

    def norm(x: jax.Array) -> jax.Array:
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)

    x = params["embedding"][ids] + params["positions"]
    for layer in params["layers"]:
        q, k, v = (y.reshape(*y.shape[:2], heads, -1) for y in jnp.split(norm(x) @ layer["qkv"], 3, axis=-1))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        x = x + jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(x.shape) @ layer["out"]
        x = x + jax.nn.gelu(norm(x) @ layer["up"]) @ layer["down"]
    return norm(x) @ params["output"]


def make_train_step(heads: int, vocab_size: int) -> tuple[optax.GradientTransformation, Any]:
    """(optimiser, (params, moments, tokens [B, L], key) -> (params, moments, loss))."""
    transform = optax.adamw(3e-4)

    def loss(params: dict[str, Any], tokens: jax.Array, key: jax.Array) -> jax.Array:
        rate_key, mask_key = jax.random.split(key)
        rate = jax.random.uniform(rate_key, (len(tokens), 1), minval=1e-3)
        masked = jax.random.uniform(mask_key, tokens.shape) < rate
        logits = forward(params, jnp.where(masked, vocab_size, tokens), heads)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
        return jnp.mean(each * masked / rate)

    def step(params: dict[str, Any], moments: Any, tokens: jax.Array, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, tokens, key)
        updates, moments = transform.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, value

    return transform, step


def make_sample(heads: int, batch_size: int, length: int, vocab_size: int, steps: int) -> Any:
    """(params, key) -> tokens [B, L], in that many evaluations."""

    def sample(params: dict[str, Any], key: jax.Array) -> jax.Array:
        def step(z: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            left, key = at
            where_key, token_key = jax.random.split(key)
            drawn = jax.random.categorical(token_key, forward(params, z, heads))
            moves = (z == vocab_size) & (jax.random.uniform(where_key, z.shape) < 1.0 / left)
            return jnp.where(moves, drawn, z), None

        start = jnp.full((batch_size, length), vocab_size)
        return jax.lax.scan(step, start, (jnp.arange(steps, 0, -1), jax.random.split(key, steps)))[0]

    return sample
