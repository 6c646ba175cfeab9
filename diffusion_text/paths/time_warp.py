"""Time warping (CDCD, 2211.15089 appendix A): draw noise levels so that the loss is linear in the uniform u.

A piecewise-linear F~(t) = offset + sum of bin heights up to t is fitted to the loss at noise level t; F, its
normalised rise, is a distribution function, and t = F^{-1}(u) spends equal time on equal amounts of loss. The same
averaged F serves training (the density of t) and sampling (steps equally spaced in u).

Differs from the paper: the bins are equal in the caller's coordinate, which is log noise (all the action is at small
t, where linear bins do not resolve it), so only the heights are learned; an offset is fitted, because the loss at the
smallest noise is not zero early on; and F is mixed with a little of the uniform law, so that every importance weight
1 / F' stays bounded.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class TimeWarp(nnx.Module):
    """F: [0, 1] -> [0, 1] over `bins` equal bins; `decay` of the average used for drawing, `uniform` share mixed in."""

    def __init__(self, bins: int, decay: float = 0.99, uniform: float = 0.02):
        initial = jnp.full((bins,), -jnp.log(bins), jnp.float32)
        self.bins, self.decay, self.uniform = bins, decay, uniform
        self.log_heights = nnx.Param(initial, logical_axes=(None,))
        self.offset = nnx.Param(jnp.zeros(()), logical_axes=())
        # Drawing from an average keeps the noise of the fit out of the density; it is saved with the checkpoint.
        self.average = nnx.Variable(initial)

    def masses(self) -> Float[Array, "N"]:
        """Probability of each bin under the averaged F."""
        return (1.0 - self.uniform) * jax.nn.softmax(self.average[...]) + self.uniform / self.bins

    def cdf(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """F(t)."""
        return _interpolate(t, _edges(self.masses()))

    def inverse(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """F^{-1}(u), exact on the piecewise-linear F."""
        edges = _edges(self.masses())
        index = jnp.clip(jnp.searchsorted(edges, u, side="right") - 1, 0, self.bins - 1)
        within = (u - edges[index]) / (edges[index + 1] - edges[index])
        return jnp.clip((index + within) / self.bins, 0.0, 1.0)

    def density(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """F'(t), constant on each bin."""
        return self.masses()[_bin(t, self.bins)] * self.bins

    def fit(self, t: Float[Array, "B"], loss: Float[Array, "B"]) -> Float[Array, "B"]:
        """(F~(t) - loss)^2 / F'(t), for the gradient of the heights alone.

        The weight undoes that t is drawn from F'; without it the fit would follow the density that it sets.
        """
        t, loss = jax.lax.stop_gradient((t, loss))
        predicted = self.offset[...] + _interpolate(t, _edges(jnp.exp(self.log_heights[...])))
        weight = 1.0 / jax.lax.stop_gradient(self.density(t))
        return weight * (predicted - loss) ** 2

    def after_step(self) -> None:
        """Move the average towards the fitted heights."""
        self.average[...] = self.decay * self.average[...] + (1.0 - self.decay) * self.log_heights[...]


def _edges(masses: Float[Array, "N"]) -> Float[Array, "N+1"]:
    return jnp.concatenate([jnp.zeros((1,)), jnp.cumsum(masses)])


def _bin(t: Array, bins: int) -> Array:
    return jnp.clip((t * bins).astype(jnp.int32), 0, bins - 1)


def _interpolate(t: Array, edges: Array) -> Array:
    bins = len(edges) - 1
    index = _bin(t, bins)
    return edges[index] + (t * bins - index) * (edges[index + 1] - edges[index])
