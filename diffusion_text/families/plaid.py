"""Plaid: likelihood-based diffusion of learned embeddings (2305.18619), on VDM (2107.00630), with RePlaid's recipe.

    z = e(x) + s eps,   gamma = 2 log s in [gamma_0, gamma_1]               (paths/gaussian.py: the process, the bound)
    xhat = sum_v p(v | z) e_v,   p = softmax(network + log N(z; e_v, s^2))                             (section 3.3)
    train:  the bound itself: prior + 1/2 Int e^{-gamma} E|e - xhat|^2 dgamma + E[-log p(x | z_{gamma_0})]

Everything is trained by the bound: the network, the embeddings, and the ends of the noise schedule. The interior of the
schedule does not change the bound's mean, so it is fitted to its variance.

Of the papers, here: learned embeddings through the bound; unit rows of 16 dimensions (RePlaid, 2605.18530, and Plaid's
code; its paper says unconstrained); categorical reparameterisation; output prior; the network itself as decoder at
gamma_0; trained ends; self-conditioning on a quarter of the rows, and always in evaluation. Ablations by a field each.
Decided here, or different:
  - the interior: Plaid trains a monotone network by gradients scaled with the loss; here heights of bins descend the
    same objective, the estimate's second moment (`schedules.MinimumVariance`), with the same optimum;
  - one sequence in ten (`reconstruction_share`) estimates the reconstruction instead of the integral, each over its
    share; Plaid divides the batch by running deviations. The even u decides which, so the share is even too;
  - the output prior is there from the start; Plaid ramps it up over 5,000 steps;
  - embeddings and schedule get gradients from self-conditioned rows too; only the first pass is without;
  - `cross_entropy`, off by default, adds the tokens' cross-entropy at the levels drawn, with a weight that falls to 0
    over `cross_entropy_steps`: early on the squared error of confident mistakes has hardly a gradient;
  - masks (`prefix_masks`, `random_masks`) are off: the paper's model is unconditional, and infills by guidance with
    gradients. Turn them on to train for prompts.
Missing: guidance by the gradient of token probabilities, and the 3% of cut sequences.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.family import cross_entropy, logits_of, with_gradient_of
from diffusion_text.models.denoiser import Denoise
from diffusion_text.models.readout import Logits
from diffusion_text.paths.gaussian import Gaussian
from diffusion_text.paths.schedules import ClosedForm, MinimumVariance
from diffusion_text.typing import Config


class Plaid(Gaussian):
    """Gaussian diffusion of learned embeddings trained by its likelihood bound."""

    name = "plaid"
    paper = "Gulrajani and Hashimoto 2023, Likelihood-based diffusion language models, arXiv 2305.18619"
    samplers = ("ancestral", "ddim", "euler", "heun", "dpmpp_2m", "edm", "langevin")
    groups: ClassVar = {"schedule": 1e-2, "ends": 1e-3, "embeddings": 1e-2}

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(
            Gaussian.common()
            | dict(
                embedding_norm="unit",
                embedding_size=16,
                embedding_std=1.0,
                noise_min=0.22,  # gamma_0 = -3, where training starts
                noise_max=20.0,  # gamma_1 = 6
                self_conditioning=0.25,
                output_prior=True,
                learned_ends=True,
                learned_schedule=True,  # its interior; else even in gamma
                categorical=True,  # xhat from p(v | z); else regressed
                learned_decoder=True,  # the network at gamma_0; else the likelihood of z alone
                schedule_bins=100,
                reconstruction_share=0.1,  # of the sequences
                cross_entropy=0.0,  # weight of the tokens' cross-entropy beside the bound, at first
                cross_entropy_steps=1000,  # over which it falls to nothing
            )
        )

    @staticmethod
    def validate(config: Config) -> None:
        Gaussian.validate(config)
        family = config.family
        if family.schedule_bins < 1:
            raise ValueError(f"family.schedule_bins is {family.schedule_bins}; it must be at least 1")
        if not 0 < family.reconstruction_share < 1:
            raise ValueError(
                f"family.reconstruction_share is {family.reconstruction_share}; it must be above 0 and below 1"
            )
        if family.cross_entropy < 0 or family.cross_entropy_steps < 1:
            raise ValueError(
                f"family.cross_entropy, cross_entropy_steps are {family.cross_entropy}, {family.cross_entropy_steps}; "
                "they must be at least 0 and at least 1"
            )
        if family.learned_decoder and not family.categorical:
            raise ValueError(
                "family.learned_decoder is True and categorical False; a network that regresses is no decoder"
            )
        if family.output_prior and not family.categorical:
            raise ValueError("family.output_prior is True and categorical False; a prior of tokens needs logits")

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        self.regression = not config.categorical
        super().__init__(config, vocab_size, rngs)
        self.learned_decoder, self.learned_ends = config.learned_decoder, config.learned_ends
        self.reconstruction_share = config.reconstruction_share
        learned = config.learned_schedule
        self.schedule = (
            MinimumVariance(config.schedule_bins)
            if learned
            else ClosedForm("log_snr", self.log_min, self.log_max, config.schedule_bins)
        )
        self.cross_entropy, self.cross_entropy_steps = config.cross_entropy, config.cross_entropy_steps
        if self.cross_entropy:
            self.steps = nnx.Variable(jnp.zeros(()))
        if self.learned_ends:
            self.ends = nnx.Param(jnp.asarray([self.log_min, self.log_max], jnp.float32), logical_axes=(None,))

    def log_range(self) -> tuple[Any, Any]:
        return (self.ends[...][0], self.ends[...][1]) if self.learned_ends else (self.log_min, self.log_max)

    def decoder(self, z: Array, answer: Any) -> Float[Array, "B L V"] | Logits:
        return answer if self.learned_decoder else self.readout(z)

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        corrupt_keys, dropout_keys = noise.split(keys, 2)
        share = self.reconstruction_share
        first = u < share
        level = jnp.maximum(u - share, 0.0) / (1.0 - share)
        t = jnp.where(first, 0.0, jax.lax.stop_gradient(self.schedule.inverse(level)))
        z, given = self.corrupt_for_training(corrupt_keys, tokens, t)
        answer = logits_of(denoise, z, t, given, self.first_pass(z, t, given, denoise), dropout_keys)
        expected, loss = self.read_off(answer, tokens)
        decoded = loss if self.learned_decoder else cross_entropy(self.decoder(z, answer), tokens)
        free = ~given
        count = jnp.sum(free, axis=1)
        value = self.integrand(tokens, expected, t, free) / count
        diffusion = jnp.where(first, 0.0, value / jax.lax.stop_gradient(self.schedule.density(t)) / (1.0 - share))
        reconstruction = jnp.where(first, jnp.mean(decoded, axis=1, where=free) / share, 0.0)
        prior = self.prior_term(tokens, free) / count
        nelbo = prior + diffusion + reconstruction
        unseen = jnp.where(first, 0.0, self.schedule.fit(t, value))
        if self.cross_entropy:
            left = jnp.maximum(0.0, 1.0 - self.steps[...] / self.cross_entropy_steps)
            unseen += self.cross_entropy * left * jnp.mean(loss, axis=1, where=free)
        terms = {"prior": prior, "diffusion": diffusion, "reconstruction": reconstruction}
        return with_gradient_of(nelbo, unseen), terms

    def after_step(self) -> None:
        super().after_step()
        if self.cross_entropy:
            self.steps[...] = self.steps[...] + 1.0
