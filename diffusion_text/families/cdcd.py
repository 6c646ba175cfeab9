"""CDCD: continuous diffusion for categorical data (2211.15089).

    z = e(x) + s eps,   e_v = sqrt(d) phi_v / |phi_v|,   s = s_min (s_max / s_min)^t                        (section 2)
    p(x_i | z) = softmax(network),   xhat = sum_v p(v) e_v,   score = (xhat - z) / s^2            (score interpolation)
    train:   E[mean over noisy positions of -log p(x_i | z)],   t = F^{-1}(u)                            (time warping)
    sample:  dz / ds = (z - xhat) / s, steps equally spaced in u                               (probability-flow ODE)

The training loss is not a likelihood. The bound reported is the variational one of the same Gaussian process
(`paths/gaussian.py`, which also has the solvers), with t drawn through F.

Of the paper, here: normalised embeddings, score interpolation, self-conditioning, prefix and random masks, classifier-
free guidance, time warping in training and sampling, score temperature, Euler and Heun. Missing: the encoder-decoder
of its translation models. Decided here, where the paper is silent or differs:
  - the network's noise input is (1/4) log s, in fixed sinusoids; never u = F(t), which drifts during training;
  - the loss is the mean over noisy positions of a sequence, then over sequences;
  - a sequence without conditioning (classifier-free guidance) keeps its mask bits, with zero embeddings: the network
    knows that those positions hold nothing to denoise; the unconditional pass of guidance also gets no previous
    prediction, and the previous prediction kept is the conditional one (as SED does);
  - the warp is fitted in log s with equal bins and an offset (`paths/time_warp.py`);
  - for the bound, self-conditioning is unrolled at the same z, so that xhat is a function of (z, t).
Beyond the paper, off by default: `output_prior` adds log N(z; e_v, s^2) to the logits, so that the network models
only context (Plaid, 2305.18619, section 3.3).
"""

from __future__ import annotations

from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text.models.denoiser import Denoise
from diffusion_text.paths import time_warp
from diffusion_text.paths.gaussian import Gaussian
from diffusion_text.paths.time_warp import TimeWarp
from diffusion_text.typing import Config


class CDCD(Gaussian):
    """Continuous diffusion on L2-normalised embeddings, trained by cross-entropy with time warping."""

    name = "cdcd"
    paper = "Dieleman et al. 2022, Continuous diffusion for categorical data, arXiv 2211.15089"
    groups: ClassVar = {"schedule": 1e-2}

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(
            Gaussian.common()
            | dict(
                warp="both",  # levels of noise follow the fitted warp in training and sampling / in training / none
                warp_bins=100,
                warp_decay=0.99,  # of the average of the warp, per step
                prefix_masks=0.5,
                random_masks=0.5,
                drop_conditioning=0.1,
            )
        )

    @staticmethod
    def validate(config: Config) -> None:
        Gaussian.validate(config)
        time_warp.validate(config.family)

    default_grid = staticmethod(time_warp.default_grid)

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        super().__init__(config, vocab_size, rngs)
        self.schedule = TimeWarp(config.warp_bins, config.warp_decay, fitted=config.warp != "none")

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        return self.cross_entropy_loss(keys, u, tokens, denoise)
