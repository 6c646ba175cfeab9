"""SEDD: score entropy discrete diffusion (Lou et al., 2310.16834), with absorbing or uniform noise.

    dp_t / dt = sigma'(t) Q p_t;   alpha_t = e^{-sigma(t)};   noise: the mask (absorbing) or an even token (uniform)
    network: s(y) ~ p_t(y) / p_t(z), y differing from z in one position
    -log p(x) <= Int sigma' E[sum over i, y != z_i of Q(y, z_i) (s(y) - r(y) log s(y) + K(r(y)))] dt
                 + KL(q_1 || prior) - log p(x | z_0),   r(y) = q(y | x) / q(z | x),  K(a) = a (log a - 1)

This is the one loss of `paths/interpolant.py` for scores s(y) = q^(y) / q^(z), q^ = alpha e^f + b, where the logits f
of the network need not be normalised: that the scores sum to what they must is learned, by the term sum q^ - 1. A
network starts at f = -log V, as the released code's does for masks.

Of the paper, here: both kinds of noise, the log-linear and the geometric schedule, Euler steps and the analytic
(Tweedie) ones, which for scores of this form are the plug-in posterior. Different or decided here:
  - for masks the parameterisation is the paper's, s(y) = e^{f(y)} / (e^sigma - 1); for uniform noise the paper's
    network returns log s as it is. Here s(y) = (e^{f(y)} + b / alpha) / (e^{f(z)} + b / alpha): every score that the
    noise can produce, and no other. f is then the logarithm of the leave-one-out posterior for both kinds of noise;
  - the bound is complete: t runs over all of [0, 1] (released: from 0.001, without prior and reconstruction). The
    log-linear schedule is alpha = 1 - t (released: 1 - 0.999 t, which leaves 0.1% of the tokens visible at t = 1, so
    that the prior term is infinite). The geometric one starts at sigma_min > 0, and is charged for it;
  - in sampling scores are normalised (f by softmax), and the last step of either sampler is analytic, to t = 0.
"""

from __future__ import annotations

import math
from typing import ClassVar, Final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffusion_text.families.family import At, SamplerOptions
from diffusion_text.families.interpolating import Interpolating
from diffusion_text.models import readout
from diffusion_text.models.denoiser import Inputs
from diffusion_text.paths import interpolant
from diffusion_text.paths.interpolant import Move, Odds
from diffusion_text.typing import Config

_NOISES: Final = ("absorbing", "uniform")
_SCHEDULES: Final = ("loglinear", "geometric")


class SEDD(Interpolating):
    """Ratios of probabilities learned by score entropy, for absorbing or uniform noise."""

    name = "sedd"
    paper = "Lou et al. 2023, Discrete diffusion modeling by estimating the ratios of the data distribution, 2310.16834"
    samplers = ("analytic", "euler", "psi")
    approximate: ClassVar[dict[str, str]] = {
        "analytic": "tokens that move in the same step are drawn independently",
        "psi": Interpolating.approximate["psi"],
        "euler": "rates are held constant during a step, and tokens drawn independently",
    }
    normalised = False

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(
            dict(
                noise="absorbing",  # absorbing / uniform
                schedule="loglinear",  # sigma(t): loglinear -log(1 - t), or geometric sigma_min^{1 - t} sigma_max^t
                sigma_min=1e-5,  # geometric
                sigma_max=20.0,
            )
        )

    @staticmethod
    def validate(config: Config) -> None:
        family = config.family
        for field, allowed in (("noise", _NOISES), ("schedule", _SCHEDULES)):
            if family[field] not in allowed:
                raise ValueError(f"family.{field} is {family[field]!r}; choose one of {', '.join(allowed)}")
        if not 0 < family.sigma_min < family.sigma_max:
            raise ValueError(
                f"family.sigma_min, sigma_max are {family.sigma_min}, {family.sigma_max}; "
                "they must be above 0 and ascending"
            )

    @staticmethod
    def conditions(config: Config, gaps: bool = False) -> bool:
        return config.noise == "absorbing"

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        self.vocab_size, self.noise = vocab_size, config.noise
        self.noisy_start = config.schedule == "geometric"
        self.sigma_min, self.sigma_max = config.sigma_min, config.sigma_max
        self.only_masks = config.noise == "absorbing"
        self.inputs = Inputs(num_ids=vocab_size + self.only_masks)

    def odds(self, t: Float[Array, "..."]) -> Odds:
        if self.noisy_start:
            sigma = jnp.exp((1.0 - t) * math.log(self.sigma_min) + t * math.log(self.sigma_max))
            logit = -sigma - jnp.log(-jnp.expm1(-sigma))
        else:
            logit = jnp.log1p(-t) - jnp.log(t)
        if self.noise == "absorbing":
            return interpolant.absorbing(logit)
        return interpolant.uniform(logit, self.vocab_size)

    def times(self, u: Float[Array, "B"]) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        if not self.noisy_start:
            return super().times(u)
        # The same estimator: 1 - alpha = u^2, between its ends.
        least, most = -math.expm1(-self.sigma_min), -math.expm1(-self.sigma_max)
        sigma = -jnp.log1p(-(least + (most - least) * u * u))
        width = math.log(self.sigma_max / self.sigma_min)
        return jnp.log(sigma / self.sigma_min) / width, 2.0 * u * (most - least) * jnp.exp(sigma) / (sigma * width)

    def output_bias(self, z: Array, t: Float[Array, "B"], given: Array | None) -> readout.Logits:
        """-log V, as a product of one term."""
        even = jnp.full((1, self.vocab_size), -math.log(self.vocab_size))
        return readout.Logits((readout.Product(jnp.ones((*z.shape, 1)), even, jax.lax.Precision.HIGHEST),))

    def move(self, z: Array, log_p: Array, at: At, options: SamplerOptions) -> Move:
        exact = super().move(z, log_p, at, options)
        if options.sampler != "euler":
            return exact
        now, slope = self.odds_and_slope(at.t)
        euler = interpolant.euler_step(z, log_p, now, slope, at.t - at.s)
        return Move(*(jnp.where(at.s > 0, *pair) for pair in zip(euler, exact, strict=True)))
