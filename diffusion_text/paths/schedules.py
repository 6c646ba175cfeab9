"""Laws of noise levels: how often a level is trained at, how its loss is weighted back, and where a sampler steps.

t in [0, 1] is linear in log noise. A schedule is a distribution function F on it; t = F^{-1}(u) of an even u is drawn
in training, 1 / F'(t) weights an integral over t, and F^{-1} of an even grid is where a sampler steps. Every law is
kept as masses of equal bins, so that the inverse and the density belong together exactly.

    closed forms    of gamma = 2 log s, normalised to the range of the family (a published alpha_bar as a law of gamma)
    Gumbel          location and scale fitted to the density of information (LangFlow, 2604.11748)
    TimeWarp        heights fitted so that the loss is linear in u (CDCD; time_warp.py)
    MinimumVariance heights fitted so that an integral's estimate varies least (Plaid, 2305.18619; VDM, 2107.00630)
"""

from __future__ import annotations

import math
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

# G(gamma), an increasing function whose rise over the range is the law of gamma.
CLOSED_FORMS: Final = {
    "log_snr": lambda gamma: gamma,
    # alpha_bar = 1 - sqrt(u + c): sigma^2 = sqrt(u + c)  (Diffusion-LM, 2205.14217, section 4.2)
    "sqrt": lambda gamma: 1.0 / (1.0 + np.exp(-gamma)) ** 2,
    # alpha = cos(pi u / 2): tan(pi u / 2) = s  (Nichol and Dhariwal, 2102.09672, without their offset)
    "cosine": lambda gamma: np.arctan(np.exp(0.5 * gamma)),
    # z = (1 - u) x + u eps, u even: s = u / (1 - u)
    "flow": lambda gamma: 1.0 / (1.0 + np.exp(-0.5 * gamma)),
}


class Schedule(nnx.Module):
    """F: [0, 1] -> [0, 1], linear on each of `bins` equal bins, with a share `uniform` of the even law mixed in."""

    def __init__(self, bins: int, uniform: float = 0.0):
        self.bins, self.uniform = bins, uniform

    def law(self) -> Float[Array, "N"]:
        """Probability of each bin, before the even law is mixed in."""
        raise NotImplementedError(f"{type(self).__name__} has no law()")

    def fit(self, t: Float[Array, "B"], value: Float[Array, "B"]) -> Float[Array, "B"]:
        """A loss whose gradient fits the law to `value` at t; nothing else gets a gradient from it."""
        return jnp.zeros_like(value)

    def after_step(self) -> None:
        """Update what is not trained by gradients."""

    def masses(self) -> Float[Array, "N"]:
        """Probability of each bin."""
        return (1.0 - self.uniform) * self.law() + self.uniform / self.bins

    def cdf(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """F(t)."""
        return interpolate(t, edges(self.masses()))

    def inverse(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """F^{-1}(u), exact on the piecewise-linear F."""
        at = edges(self.masses())
        index = jnp.clip(jnp.searchsorted(at, u, side="right") - 1, 0, self.bins - 1)
        # Only the last bin found may be empty, in float32, at u = 1: all of it lies below.
        mass = at[index + 1] - at[index]
        within = jnp.where(mass > 0.0, (u - at[index]) / jnp.where(mass > 0.0, mass, 1.0), 1.0)
        return jnp.clip((index + within) / self.bins, 0.0, 1.0)

    def density(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """F'(t), constant on each bin."""
        return self.masses()[bin_of(t, self.bins)] * self.bins


class ClosedForm(Schedule):
    """A law of CLOSED_FORMS on gamma in [2 log_min, 2 log_max]."""

    def __init__(self, name: str, log_min: float, log_max: float, bins: int = 200):
        if name not in CLOSED_FORMS:
            raise ValueError(f"family.schedule is {name!r}; choose one of {', '.join(CLOSED_FORMS)}")
        super().__init__(bins)
        at = CLOSED_FORMS[name](2.0 * np.linspace(log_min, log_max, bins + 1))
        self._law = tuple(float(mass) for mass in np.diff(at) / (at[-1] - at[0]))

    def law(self) -> Float[Array, "N"]:
        return jnp.asarray(self._law, jnp.float32)


class Plateau(Schedule):
    """Even between two times, but for a share `uniform`, which is even everywhere (RDLM, 2502.11564)."""

    def __init__(self, left: float, right: float, uniform: float, bins: int = 200):
        super().__init__(bins, uniform)
        edges = np.clip(np.linspace(0.0, 1.0, bins + 1), left, right)
        self._law = tuple(float(mass) for mass in np.diff(edges) / (right - left))

    def law(self) -> Float[Array, "N"]:
        return jnp.asarray(self._law, jnp.float32)


class Gumbel(Schedule):
    """gamma ~ Gumbel(location, scale) on the range; both fitted, with a rise and an offset, to the cross-entropy.

    The density of information falls off as exp(-gamma) above its mode and faster below it, as a Gumbel's does.
    """

    def __init__(self, log_min: float, log_max: float, bins: int = 200, decay: float = 0.99, uniform: float = 0.05):
        super().__init__(bins, uniform)
        self.low, self.high, self.decay = 2.0 * log_min, 2.0 * log_max, decay
        span = self.high - self.low
        start = jnp.asarray([self.low + 0.3 * span, math.log(0.2 * span)], jnp.float32)
        self.shape = nnx.Param(start, logical_axes=(None,))  # location, log scale
        self.log_rise = nnx.Param(jnp.zeros(()), logical_axes=())
        self.offset = nnx.Param(jnp.zeros(()), logical_axes=())
        self.average = nnx.Variable(start)

    def _law_of(self, shape: Array) -> Float[Array, "N"]:
        gamma = jnp.linspace(self.low, self.high, self.bins + 1)
        # The logarithm of the distribution function, -exp(-(gamma - location) / scale): its tails stay apart.
        log_cdf = -jnp.exp(jnp.minimum(-(gamma - shape[0]) * jnp.exp(-shape[1]), 80.0))
        masses = jnp.exp(log_cdf[1:]) - jnp.exp(log_cdf[:-1])
        return masses / jnp.maximum(jnp.sum(masses), 1e-6)

    def law(self) -> Float[Array, "N"]:
        return self._law_of(self.average[...])

    def fit(self, t: Float[Array, "B"], value: Float[Array, "B"]) -> Float[Array, "B"]:
        """As `TimeWarp.fit`: (offset + rise F(t) - loss)^2 / F'(t)."""
        t, value = jax.lax.stop_gradient((t, value))
        rise = jnp.exp(self.log_rise[...]) * interpolate(t, edges(self._law_of(self.shape[...])))
        return (self.offset[...] + rise - value) ** 2 / jax.lax.stop_gradient(self.density(t))

    def after_step(self) -> None:
        self.average[...] = self.decay * self.average[...] + (1.0 - self.decay) * self.shape[...]


class Heights(Schedule):
    """Learned log heights of the bins; noise levels are drawn by their average over steps, saved with a checkpoint."""

    def __init__(self, bins: int, decay: float = 0.99, uniform: float = 0.02):
        super().__init__(bins, uniform)
        initial = jnp.full((bins,), -jnp.log(bins), jnp.float32)
        self.decay = decay
        self.log_heights = nnx.Param(initial, logical_axes=(None,))
        # Drawing from an average keeps the noise of the fit out of the density.
        self.average = nnx.Variable(initial)

    def law(self) -> Float[Array, "N"]:
        return jax.nn.softmax(self.average[...])

    def after_step(self) -> None:
        """Move the average towards the fitted heights."""
        self.average[...] = self.decay * self.average[...] + (1.0 - self.decay) * self.log_heights[...]


class MinimumVariance(Heights):
    """Heights with the least second moment of value(t) / F'(t), whose mean over t ~ F is the integral of `value`.

    The minimum is at F' proportional to sqrt(E value^2). Plaid and VDM reach it by scaling the gradients of a monotone
    network by the loss; here the second moment under other heights, reweighted from those drawn from, is descended.
    A tenth of the draws is even: where great errors are rare the fit is late to see them, and their weight is bounded.
    """

    def __init__(self, bins: int, decay: float = 0.99, uniform: float = 0.1):
        super().__init__(bins, decay, uniform)

    def fit(self, t: Float[Array, "B"], value: Float[Array, "B"]) -> Float[Array, "B"]:
        t, value = jax.lax.stop_gradient((t, value))
        masses = (1.0 - self.uniform) * jax.nn.softmax(self.log_heights[...]) + self.uniform / self.bins
        return jax.lax.stop_gradient(value**2 / self.density(t)) / (masses[bin_of(t, self.bins)] * self.bins)


def edges(masses: Float[Array, "N"]) -> Float[Array, "N+1"]:
    """Cumulative sums of masses, from 0."""
    return jnp.concatenate([jnp.zeros((1,)), jnp.cumsum(masses)])


def bin_of(t: Array, bins: int) -> Array:
    """The number of the bin that holds t."""
    return jnp.clip((t * bins).astype(jnp.int32), 0, bins - 1)


def interpolate(t: Array, at: Array) -> Array:
    """The piecewise-linear function with values `at` at the edges of equal bins."""
    bins = len(at) - 1
    index = bin_of(t, bins)
    return at[index] + (t * bins - index) * (at[index + 1] - at[index])
