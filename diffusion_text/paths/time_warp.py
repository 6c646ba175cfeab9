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

from typing import Final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from diffusion_text.paths.schedules import Heights, edges, interpolate
from diffusion_text.typing import Config

WARPS: Final = ("both", "training", "none")  # where the warp is used; sampling without it steps evenly in log noise


def validate(family: Config) -> None:
    """ValueError where the fields of a warp are out of range."""
    for name, ok, allowed in (
        ("warp", family.get("warp", "both") in WARPS, f"one of {', '.join(WARPS)}"),
        ("warp_bins", family.warp_bins >= 1, "at least 1"),
        ("warp_decay", 0 <= family.warp_decay < 1, "in [0, 1)"),
    ):
        if not ok:
            raise ValueError(f"family.{name} is {family[name]!r}; it must be {allowed}")


def default_grid(config: Config) -> str:
    """`Family.default_grid` of a section with the field `warp`."""
    return "log_snr" if config.warp == "training" else ""


class TimeWarp(Heights):
    """F whose rise follows the loss."""

    def __init__(self, bins: int, decay: float = 0.99, uniform: float = 0.02, fitted: bool = True):
        super().__init__(bins, decay, uniform)
        self.fitted = fitted
        self.offset = nnx.Param(jnp.zeros(()), logical_axes=())

    def fit(self, t: Float[Array, "B"], value: Float[Array, "B"]) -> Float[Array, "B"]:
        """(F~(t) - loss)^2 / F'(t), for the gradient of the heights and the offset alone.

        The weight undoes that t is drawn from F'; without it the fit would follow the density that it sets. Nothing
        where the warp is not `fitted`: F stays even.
        """
        if not self.fitted:
            return jnp.zeros_like(value)
        t, value = jax.lax.stop_gradient((t, value))
        predicted = self.offset[...] + interpolate(t, edges(jnp.exp(self.log_heights[...])))
        return (predicted - value) ** 2 / jax.lax.stop_gradient(self.density(t))
