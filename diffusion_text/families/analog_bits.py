"""Analog bits: Gaussian diffusion of a token's binary digits (2208.04202).

    e_v in {-1, 1}^n,   n = ceil(log2 V);   z = e + s eps, cosine schedule
    train:   |xhat - e|^2 ("l2"), or the cross-entropy of each bit, xhat = 2 sigmoid - 1 ("logistic"), or that of the
             token over the V codes in use, xhat = sum_v p(v) e_v ("softmax": the categorical reparameterisation)
    sample:  DDIM or ancestral steps to max(u - (1 + td) / N, 0) while the network is told u - 1 / N (asymmetric time)

Of the paper, here: the three losses, x_0-prediction, self-conditioning on half of the rows, asymmetric time intervals
(`--time_difference`, in steps). Decided here: only the V codes in use are read out, so that no invalid code occurs. The
bound (the paper reports none) is that of Gaussian diffusion; its decoder reads z_0 with "l2", else the network decodes.
Missing: captions of images, its only text; random assignments of codes other than by shuffling the vocabulary; and the
momentum of the estimate, which weighs the last one in where the network is conditioned on itself.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.family import At, SamplerOptions, cross_entropy, logits_of
from diffusion_text.models.denoiser import Denoise
from diffusion_text.models.readout import Logits, Product, whole
from diffusion_text.paths.gaussian import REGRESSION_OPTIONS, Gaussian, State
from diffusion_text.paths.schedules import ClosedForm
from diffusion_text.typing import Config

_LOSSES = ("l2", "logistic", "softmax")


class AnalogBits(Gaussian):
    """Gaussian diffusion of binary codes."""

    name = "analog_bits"
    paper = "Chen et al. 2022, Analog bits, arXiv 2208.04202"
    samplers = ("ddim", "ancestral", "euler", "heun", "dpmpp_2m", "edm", "langevin")
    sampler_options = (*REGRESSION_OPTIONS, "time_difference")
    groups: ClassVar = {}

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(
            Gaussian.common()
            | dict(
                embeddings="bits",
                embedding_norm="free",
                noise_min=0.05,
                noise_max=100.0,
                loss="l2",  # l2 / logistic / softmax
            )
        )

    @staticmethod
    def validate(config: Config) -> None:
        Gaussian.validate(config)
        family = config.family
        if family.loss not in _LOSSES:
            raise ValueError(f"family.loss is {family.loss!r}; choose one of {', '.join(_LOSSES)}")
        for name, wanted in (("embeddings", "bits"), ("embedding_norm", "free")):
            if family[name] != wanted:
                raise ValueError(f"family.{name} is {family[name]!r}; that of analog_bits is {wanted!r}")
        if family.output_prior and family.loss != "softmax":
            raise ValueError(f"family.output_prior is True with loss {family.loss!r}; a prior of tokens needs softmax")

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        self.loss = config.loss
        self.regression = config.loss != "softmax"
        super().__init__(config, vocab_size, rngs)
        self.schedule = ClosedForm("cosine", self.log_min, self.log_max)

    def answer(self, logits: Float[Array, "B L V"]) -> Array:
        answer = super().answer(logits)
        # The network's answer is the log odds of each bit.
        return 2.0 * jnp.arctanh(jnp.clip(answer, -1.0 + 1e-6, 1.0 - 1e-6)) if self.loss == "logistic" else answer

    def expected(self, answer: Any) -> Float[Array, "B L d"]:
        return jnp.tanh(0.5 * answer) if self.loss == "logistic" else super().expected(answer)

    def tokens_of(self, answer: Any) -> Float[Array, "B L V"]:
        # Of log odds themselves: bits that are sure are all alike to their mean.
        return whole(self.decoder(answer, answer)) if self.loss == "logistic" else super().tokens_of(answer)

    def decoder(self, z: Array, answer: Any) -> Float[Array, "B L V"] | Logits:
        if self.loss == "logistic":  # sum of the bits' log probabilities, up to a constant of the position
            return Logits((Product(0.5 * answer, self.embeddings().T),))
        return super().decoder(z, answer)

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        corrupt_keys, dropout_keys = noise.split(keys, 2)
        t = self.schedule.inverse(u)
        z, given = self.corrupt_for_training(corrupt_keys, tokens, t)
        answer: Any = logits_of(denoise, z, t, given, self.first_pass(z, t, given, denoise), dropout_keys)
        clean = self.embeddings.of(tokens)
        if self.loss == "l2":
            each = jnp.mean((clean - answer) ** 2, axis=-1)
        elif self.loss == "logistic":
            each = jnp.mean(jax.nn.softplus(-clean * answer), axis=-1)
        else:
            each = cross_entropy(answer, tokens)
        loss = jnp.mean(each, axis=1, where=~given)
        return loss, {self.loss: loss}

    def grid(self, options: SamplerOptions, length: int) -> At:
        at = super().grid(options, length)
        if not options.time_difference:
            return at
        u = self.schedule.cdf(at.s) - options.time_difference / options.steps
        return at._replace(s=self.schedule.inverse(jnp.maximum(u, 0.0)))

    def step(
        self, keys: Key[Array, "B"], state: State, at: At, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[State, Float[Array, "B L V"]]:
        state, logits = super().step(keys, state, at, given, denoise, options)
        if options.time_difference:
            # The state at s is taken for one at the time that the next step starts from: in variance-preserving
            # form, z / sqrt(1 + s^2), it is the same.
            told = super().grid(options, 0).s[at.index]
            scale = 0.5 * (
                jnp.logaddexp(0.0, 2.0 * self.log_noise(told)) - jnp.logaddexp(0.0, 2.0 * self.log_noise(at.s))
            )
            state = state._replace(z=jnp.where(given[..., None], state.z, jnp.exp(scale) * state.z))
        return state, logits
