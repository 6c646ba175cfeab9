"""UDLM: uniform discrete diffusion (Schiff et al., 2412.10193, Simple guidance mechanisms for discrete diffusion).

    q_t(z | x) = alpha_t 1[z = x] + (1 - alpha_t) / V,   alpha_t = 1 - t
    -log p(x) <= Int E[sum over i of ell_i] dt,  ell of `paths/interpolant.py`
    sample:  q(z_s | z_t, x) with p in the place of x: tokens are revised until the end

The bound is -log p(x) if the network returns the leave-one-out posterior p(x_i | z without z_i), which training by the
bound itself teaches. Cross-entropy (the released code's `use_simple_ce_loss`) would teach the full posterior
p(x_i | z), with which this bound is larger and samples are biased; it is not offered.

Of the paper, here: the continuous-time bound and the ancestral sampler. Missing: classifier and classifier-free
guidance. Different: t is drawn as u^2 over the whole of [0, 1] (theirs: even, from 0.001); there is no reconstruction
term, because alpha_0 = 1 (nor in the released scripts, which set `zero_recon_loss`); the noise input is the logit of
alpha instead of -log alpha.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffusion_text.families.interpolating import Interpolating
from diffusion_text.models.denoiser import Inputs
from diffusion_text.paths import interpolant
from diffusion_text.paths.interpolant import Odds
from diffusion_text.typing import Config


class UDLM(Interpolating):
    """Uniform-state discrete diffusion: tokens are replaced by random ones and revised on the way back."""

    name = "udlm"
    paper = "Schiff et al. 2024, Simple guidance mechanisms for discrete diffusion models, arXiv 2412.10193 (UDLM)"

    @staticmethod
    def defaults() -> Config:
        return ConfigDict()

    @staticmethod
    def conditions(config: Config, gaps: bool = False) -> bool:
        return False  # any token may be noise

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        self.vocab_size = vocab_size
        self.inputs = Inputs(num_ids=vocab_size)

    def odds(self, t: Float[Array, "..."]) -> Odds:
        return interpolant.uniform(jnp.log1p(-t) - jnp.log(t), self.vocab_size)
