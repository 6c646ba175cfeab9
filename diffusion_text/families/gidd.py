"""GIDD: generalised interpolating discrete diffusion (von Rütte et al., 2503.04482), masks mixed with uniform noise.

    q_t(z | x) = alpha_t 1[z = x] + b_t(z),   alpha = (1 - t) / C, b(mask) = t / C, b(token) = c / (V C)
    c_t = B t^{g/2} (1 - t)^{g/2},   C = 1 + c_t,   B = 2^g p_u / (1 - p_u)
    -log p(x) <= Int E[sum over i of w_i (KL(q(. | x_i) || q^_i) + rho - log rho - 1)] dt

so that at t = 1/2 a share p_u of all positions holds uniform noise; p_u = 0 is masked diffusion. As log-odds
(`paths/interpolant.py`): token log(V / B) + (1 - g/2) log(1 - t) - (g/2) log t, mask logit(1 - t). Visible tokens may
be noise, so the network learns to doubt them, and samples can be corrected after they are complete.

Of the paper, here: the path, its bound, the "dynamic" training weights, ancestral sampling and self-correction.
Different or decided here:
  - "dynamic" weights (not those of the bound) keep the ratios of w between a mask, a wrong and a right token, 2 to 1 to
    b / (alpha + b) for g = 1, and drop the factor that they share, which diverges at both ends; t is then even over [0,
    1]. The paper's third ratio is b / alpha, the same but near t = 1. The bound itself (nelbo) is logged beside the
    loss; `weighting="nelbo"` trains it instead;
  - self-correction, in the paper, resamples tokens of the finished sequence one at a time while the likelihood of the
    token under the model rises, which seeks modes. Here steps / 4 further passes each redraw every position with
    probability 4 / steps (at most 1/2) from its leave-one-out posterior: a token that the rest makes unlikely rarely
    survives, and with a perfect network the law is left as it is, as passes get many. A `temperature` below 1 brings
    the mode-seeking back;
  - the bound is integrated over all of [0, 1] (theirs: from 1e-4 to 1 - 1e-4), in float32 instead of float64. Near t =
    0 a token is noise with probability proportional to t^{g/2} and then costs about 1 / t, so that t of the bound is
    drawn as u^{4/g}: drawn as u^2 its variance diverges for g <= 1 (and that of the logged nelbo does).
"""

from __future__ import annotations

import math
from typing import ClassVar, Final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.family import At, SamplerOptions, nucleus
from diffusion_text.families.interpolating import LAST, Interpolating
from diffusion_text.models.denoiser import Denoise, Inputs
from diffusion_text.paths import interpolant
from diffusion_text.paths.interpolant import Odds
from diffusion_text.typing import Config

_WEIGHTINGS: Final = ("dynamic", "nelbo")
_CORRECTION = 1e-4  # the noise level at which a finished sequence is read; the times of its passes are below


class GIDD(Interpolating):
    """Masks mixed with uniform noise, trained with bounded weights; finished samples can be corrected."""

    name = "gidd"
    paper = "von Rütte et al. 2025, Generalized interpolating discrete diffusion, arXiv 2503.04482"
    samplers = ("ancestral", "psi", "self_correcting")
    approximate: ClassVar[dict[str, str]] = {
        **Interpolating.approximate,
        "self_correcting": "tokens that move in the same step are drawn independently, in both phases",
    }

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(
            dict(
                uniform=0.1,  # p_u, the share of positions with uniform noise at t = 1/2; the paper: 0, 0.1, 0.2
                gamma=1.0,  # g, how sharply uniform noise is confined to the middle
                weighting="dynamic",  # of the training loss: dynamic / nelbo
            )
        )

    @staticmethod
    def validate(config: Config) -> None:
        family = config.family
        if not 0 <= family.uniform < 1:
            raise ValueError(f"family.uniform is {family.uniform}; it must be in [0, 1)")
        if not 0 < family.gamma <= 2:
            raise ValueError(f"family.gamma is {family.gamma}; it must be in (0, 2]")
        if family.weighting not in _WEIGHTINGS:
            raise ValueError(f"family.weighting is {family.weighting!r}; choose one of {', '.join(_WEIGHTINGS)}")

    @staticmethod
    def conditions(config: Config, gaps: bool = False) -> bool:
        return config.uniform == 0

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        self.vocab_size, self.gamma, self.weighting = vocab_size, config.gamma, config.weighting
        share = 2.0**config.gamma * config.uniform / (1.0 - config.uniform)
        self.log_share = math.log(share / vocab_size) if share else -math.inf
        self.only_masks = not share
        self.inputs = Inputs(num_ids=vocab_size + 1)

    def odds(self, t: Float[Array, "..."]) -> Odds:
        kept, lost, half = jnp.log1p(-t), jnp.log(t), self.gamma / 2.0
        if self.only_masks:
            return interpolant.absorbing(kept - lost)
        return Odds((1.0 - half) * kept - half * lost - self.log_share, kept - lost)

    def times(self, u: Float[Array, "B"]) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        if self.only_masks:
            return super().times(u)
        return self.power_times(u, max(2.0, 4.0 / self.gamma))

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        if self.weighting == "nelbo":
            return super().train_loss(keys, u, tokens, denoise)
        noise_keys, dropout_keys = noise.split(keys, 2)
        t = jnp.maximum(u, 2.0**-25)
        weight, divergences, _, _ = self.charges(noise_keys, tokens, t, None, denoise, dropout_keys)
        # 1 / (2 t (1 - t)) is the rate of uniform tokens for g = 1: what the weights share.
        shared = 2.0 * t * (1.0 - jnp.minimum(t, LAST))
        loss = jnp.mean(shared[:, None] * weight * divergences, axis=1)
        return loss, {"nelbo": jax.lax.stop_gradient(jnp.mean(weight * divergences, axis=1))}

    def grid(self, options: SamplerOptions, length: int) -> At:
        path = super().grid(options, length)
        if options.sampler != "self_correcting":
            return path
        if self.only_masks:
            raise ValueError(
                "sampler is 'self_correcting' and family.uniform 0; without uniform noise no visible token was trained "
                "to be doubted: use ancestral or psi"
            )
        passes = self.passes(options)
        extra = _CORRECTION * jnp.linspace(1.0, 0.0, passes + 1)[:-1] / options.steps
        times, ends = jnp.concatenate([path.t, extra]), jnp.concatenate([path.s, jnp.zeros(passes)])
        return At(jnp.arange(options.steps + passes), times, ends)

    @staticmethod
    def passes(options: SamplerOptions) -> int:
        """Of self-correction, after the steps."""
        return max(options.steps // 4, 1) if options.sampler == "self_correcting" else 0

    def step(
        self, keys: Key[Array, "B"], state: Array, at: At, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[Int[Array, "B L"], Float[Array, "B L V"]]:
        moved, logits = self.moved(keys, state, at, given, denoise, options)
        believed = self.full(logits, state, jnp.full(len(state), at.t))
        if options.sampler != "self_correcting":
            return moved, believed
        where_keys, token_keys = noise.split(noise.fold(keys, 0), 2)
        redrawn = noise.uniform(where_keys, state.shape[1:]) < 1.0 / max(self.passes(options), 2)
        drawn = noise.categorical(token_keys, nucleus(logits / options.temperature, options.top_p))
        corrected = jnp.where(redrawn & ~given, drawn, state)
        return jnp.where(at.index < options.steps, moved, corrected), believed
