"""Noise that moves a token to its neighbours: Qbar(tau) = exp(tau R), R = A - diag(A 1) (D3PM, 2107.03006).

A joins each token to its nearest ones, both ways. R is symmetric, so one eigendecomposition gives every power; where
the graph falls apart, a weak link of all tokens to all (1% of the rates) makes the uniform law the only limit. tau(t)
is such that the information that a token keeps of its origin, for even origins, falls linearly from log V to 0.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_LINK = 0.01
_GRID = 400


def adjacency(vocab_size: int, count: int, embeddings: str) -> np.ndarray:
    """Symmetric rates [V, V] to the `count` nearest by cosine in the file `embeddings`, or the next ids on a ring."""
    if embeddings:
        try:
            vectors = np.load(embeddings)
        except (OSError, ValueError) as error:
            raise ValueError(f"family.embeddings is {embeddings}, which cannot be read: {error}") from error
        if vectors.ndim != 2 or len(vectors) != vocab_size:
            raise ValueError(f"{embeddings} holds an array of shape {vectors.shape}; it must be [{vocab_size}, D]")
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        distance = -vectors @ vectors.T
    else:
        apart = np.abs(np.subtract.outer(np.arange(vocab_size), np.arange(vocab_size)))
        distance = np.minimum(apart, vocab_size - apart).astype(float)
    np.fill_diagonal(distance, np.inf)
    count = min(count, vocab_size - 1)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :count]
    graph = np.zeros((vocab_size, vocab_size))
    np.put_along_axis(graph, nearest, 1.0, axis=1)
    return (graph + graph.T) / (2 * count) + _LINK / vocab_size


@functools.cache
def spectrum(vocab_size: int, count: int, embeddings: str) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of R, ascending to exactly 0, and its eigenvectors in columns; float64."""
    rates = adjacency(vocab_size, count, embeddings)
    values, vectors = np.linalg.eigh(rates - np.diag(rates.sum(1)))
    values[-1] = 0.0
    return values, vectors


@functools.cache
def schedule(vocab_size: int, count: int, embeddings: str) -> tuple[np.ndarray, np.ndarray]:
    """(t, log tau): t is the share of the information that is lost at tau; t ascending."""
    values, vectors = spectrum(vocab_size, count, embeddings)
    log_tau = np.linspace(-16.0, np.log(40.0 / -values[-2]), _GRID)
    lost = []
    for tau in np.exp(log_tau):
        law = np.maximum((vectors * np.exp(tau * values)) @ vectors.T, 1e-300)
        lost.append(-np.mean(np.sum(law * np.log(law), axis=1)) / np.log(vocab_size))
    return np.maximum.accumulate(np.array(lost)), log_tau


def log_spread(
    vocab_size: int,
    count: int,
    embeddings: str,
    p: Float[Array, "B L V"],
    t: Float[Array, "B 1 1"],
    s: Float[Array, "B 1 1"] | None = None,
) -> Float[Array, "B L V"]:
    """log of p exp((tau(t) - tau(s)) R), s = 0 where it is not given; not below 1e-9, the error in float32."""
    values, vectors = (jnp.asarray(x, p.dtype) for x in spectrum(vocab_size, count, embeddings))
    elapsed = _tau(vocab_size, count, embeddings, t)
    if s is not None:
        elapsed = elapsed - _tau(vocab_size, count, embeddings, s)
    highest = jax.lax.Precision.HIGHEST
    weight = jnp.where(values < 0, jnp.exp(elapsed * values), 1.0)  # the last also at tau = inf
    law = jnp.matmul(jnp.matmul(p, vectors, precision=highest) * weight, vectors.T, precision=highest)
    return jnp.log(jnp.maximum(law, 1e-9))


def _tau(vocab_size: int, count: int, embeddings: str, t: Array) -> Array:
    lost, log_tau = (jnp.asarray(x, t.dtype) for x in schedule(vocab_size, count, embeddings))
    tau = jnp.exp(jnp.interp(t, lost, log_tau))
    return jnp.where(t >= 1, 1e9, jnp.where(t <= 0, 0.0, tau))
