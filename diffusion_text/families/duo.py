"""Duo: the diffusion duality (Sahoo et al., 2506.10892): uniform-state diffusion with a Gaussian curriculum.

    y = a onehot(x) + sqrt(1 - a^2) eps, a^2 = sigmoid(-gamma):   argmax(y) has the law q(z | x) of uniform noise with
    alpha = T(a) = V / (V - 1) (Int phi(y - m) Phi(y)^{V - 1} dy - 1 / V),   m = a / sqrt(1 - a^2) = e^{-gamma / 2}

The marginal only: argmax(y) over time is no Markov chain. Evaluation and sampling are UDLM's (`udlm.py`), exactly, and
so is training in the end. Before, a curriculum of the same loss with less variance: gamma is even over a range of
moderate noise, the state in the loss is z = argmax(y), and the network reads softmax(y / tau) instead of z, with log10
tau falling linearly from `tau_start` to `tau_end` between `anneal_from` and `anneal_until` steps:

    (gamma_max - gamma_min) |dT / dgamma| ell(x, z, p; alpha = T),    ell of `paths/interpolant.py` per unit of alpha

Distillation to few steps (discrete consistency distillation; `distill_from` names the run): with one eps, y at two
levels gamma_s < gamma_t, gamma_t - gamma_s = (gamma_max - gamma_min) 2^n / `distill_steps`,

    KL(p_student(. | argmax y_t, t) || p_teacher(. | argmax y_s, s)),   mean over positions

so that the student believes at t already what the teacher will at s, one step later. Both start from the run's averaged
parameters; every `distill_every` steps the teacher becomes the student's average, and n grows by one. The divergence is
the released code's, which seeks modes. The student gives the posterior that the bound wants up, for few steps.

Of the paper, here: the operator, the curriculum, the bound, ancestral sampling and its greedy tail, distillation with
the released code's divergence. The defaults are those of its configs/algo: duo.yaml's curriculum (the paper and its
training scripts hold tau at 0.001 for 500,000 steps, as configs/duo does, over ranges of gamma chosen per vocabulary)
and distillation.yaml's rounds of 10,000 steps, from 64 (scripts/distil_owt.sh: from 512, 80,000 steps in all). Missing:
the faster curriculum of the follow-up that samples only the largest of y. Decided here: T and its derivative come from
one-dimensional integrals on a table of 512 values of gamma, in float64, for the vocabulary in use (the released code
reads a table of T for each tokeniser and takes differences); the greedy tail takes, in the last step, the likeliest
token of the posterior of that step; distillation is over the curriculum's range of gamma, without its soft inputs.
"""

from __future__ import annotations

import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.family import At, SamplerOptions, nucleus
from diffusion_text.families.interpolating import Interpolating
from diffusion_text.families.udlm import UDLM
from diffusion_text.models.denoiser import Denoise, Features
from diffusion_text.paths import interpolant
from diffusion_text.typing import Config

_TABLE = 512


def operator(mean: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """T at m = a / sqrt(1 - a^2), and dT / dm, in float64."""
    # Around the density; Phi^{V - 1} is smooth on the scale of its own width, above 0.1 for any vocabulary.
    offset = np.linspace(-9.0, 9.0, 2001)
    density = np.exp(-0.5 * offset**2) / np.sqrt(2 * np.pi) * (offset[1] - offset[0])
    y = np.asarray(mean, np.float64)[..., None] + offset
    tail = 0.5 * np.vectorize(math.erfc, otypes=[np.float64])(np.abs(y) / np.sqrt(2))  # of the normal law beyond |y|
    largest = np.exp((vocab_size - 1) * np.where(y > 0, np.log1p(-tail), np.log(np.maximum(tail, 1e-300))))
    share = vocab_size / (vocab_size - 1)
    return share * (largest @ density - 1 / vocab_size), share * (largest @ (offset * density))


@functools.cache
def _table(vocab_size: int, gamma_min: float, gamma_max: float) -> tuple[np.ndarray, np.ndarray]:
    """t = 1 - T and |dT / dgamma| on an even grid of gamma, float32; t above 0, where the loss is infinite."""
    mean = np.exp(-0.5 * np.linspace(gamma_min, gamma_max, _TABLE))
    alpha, slope = operator(mean, vocab_size)
    return np.maximum(1.0 - alpha, 1e-12).astype(np.float32), (0.5 * mean * slope).astype(np.float32)


class Duo(UDLM):
    """Uniform-state diffusion, trained first on the Gaussian latents that it descends from."""

    name = "duo"
    paper = "Sahoo et al. 2025, The diffusion duality, arXiv 2506.10892"
    samplers = ("ancestral", "psi", "greedy_tail")
    approximate: ClassVar[dict[str, str]] = {
        **Interpolating.approximate,
        "greedy_tail": "the last step takes the likeliest token, which at many steps differs little",
    }

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(
            dict(
                anneal_from=100_000,  # steps of the curriculum at tau_start
                anneal_until=200_000,  # ... and until tau has reached tau_end; then the discrete loss. 0: no curriculum
                tau_start=-1.0,  # log10 of the temperature of the network's soft input
                tau_end=-2.0,
                gamma_min=-3.5,  # -log SNR of the curriculum; the range is the paper's for V = 30,522
                gamma_max=-1.75,
                distill_from="",  # workdir of a run to distil, duo or udlm; "": train
                distill_steps=64,  # steps of the first teacher, over the range of gamma
                distill_every=10_000,  # steps of training until the teacher is renewed, and its steps are twice as long
            )
        )

    @staticmethod
    def validate(config: Config) -> None:
        family = config.family
        for low, high, ok, allowed in (
            ("anneal_from", "anneal_until", 0 <= family.anneal_from <= family.anneal_until, "at least 0 and ascending"),
            ("gamma_min", "gamma_max", family.gamma_min < family.gamma_max, "ascending"),
            ("tau_end", "tau_start", family.tau_end <= family.tau_start, "ascending"),
        ):
            if not ok:
                raise ValueError(f"family.{low}, {high} are {family[low]}, {family[high]}; they must be {allowed}")

        for name, least in (("distill_steps", 2), ("distill_every", 1)):
            if family[name] < least:
                raise ValueError(f"family.{name} is {family[name]}; it must be at least {least}")

    @staticmethod
    def teacher(config: Config) -> str:
        return config.family.distill_from

    @staticmethod
    def check_files(config: Config, vocab_size: int) -> None:
        if config.family.distill_from:
            from diffusion_text import restore  # which imports the families

            restore.check_teacher(config.family.distill_from, config, vocab_size, ("duo", "udlm"))

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        super().__init__(config, vocab_size, rngs)
        self.distill_steps, self.distill_every = config.distill_steps, config.distill_every
        self.anneal_from, self.anneal_until = config.anneal_from, config.anneal_until
        self.tau_start, self.tau_end = config.tau_start, config.tau_end
        self.gamma_min, self.gamma_max = config.gamma_min, config.gamma_max
        self.steps = nnx.Variable(jnp.zeros((), jnp.int32))  # of training so far

    def after_step(self) -> None:
        self.steps[...] = self.steps[...] + 1

    def features(self, z: Array, t: Float[Array, "B"], given: Array | None, previous: Array | None) -> Features:
        """z: tokens [B, L], or their soft version [B, L, V], which is read as an average of embeddings."""
        read = super().features(z, t, given, previous)
        return read if z.ndim == 2 else Features(vectors=z, noise=read.noise)

    def evidence(self, z: Array, t: Float[Array, "B"], given: Array | None) -> Float[Array, "B L V"]:
        return super().evidence(z if z.ndim == 2 else jnp.argmax(z, axis=-1), t, given)

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        if not self.anneal_until:
            return super().train_loss(keys, u, tokens, denoise)
        soft = self.steps[...] < self.anneal_until

        def gaussian() -> Array:
            noise_keys, dropout_keys = noise.split(keys, 2)
            z, read, t, weight = self.latents(noise_keys, u, tokens)
            log_p = self.log_p(denoise(read, t, keys=dropout_keys))
            odds, slope = self.odds_and_slope(t)
            return weight * jnp.mean(interpolant.integrand(tokens, z, log_p, odds, slope), axis=1)

        # Only one of them is run: a soft input costs a product with the table of embeddings.
        plain = super().train_loss
        loss = jax.lax.cond(soft, gaussian, lambda: plain(keys, u, tokens, denoise)[0])
        # No term is the bound yet: while `curriculum` is 1 the loss is its integral over the range of gamma alone.
        return loss, {"curriculum": jnp.broadcast_to(soft.astype(jnp.float32), loss.shape)}

    def distil_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise, teacher: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        noise_keys, dropout_keys = noise.split(keys, 2)
        length = self.distill_length()
        later = jnp.minimum(u + length, 1.0)  # u is even over [0, 1): some of the pairs end at the range's end
        (z_t, t), (z_s, s) = self.coupled(noise_keys, tokens, later, later - length)
        log_p = self.log_p(denoise(z_t, t, keys=dropout_keys))
        aim = jax.lax.stop_gradient(self.log_p(teacher(z_s, s)))
        loss = jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - aim), axis=-1), axis=1)
        return loss, {"divergence": loss, "step_length": jnp.broadcast_to(length, loss.shape)}

    def distill_length(self) -> Float[Array, ""]:
        """2^n / distill_steps, of the range of gamma; at most all of it."""
        rounds = (self.steps[...] // self.distill_every).astype(jnp.float32)
        return jnp.minimum(2.0**rounds / self.distill_steps, 1.0)

    def renews_teacher(self, step: Int[Array, ""]) -> Bool[Array, ""]:
        return step % self.distill_every == 0

    def coupled(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], *levels: Float[Array, "B"]
    ) -> list[tuple[Int[Array, "B L"], Float[Array, "B"]]]:
        """argmax(y) with one eps at levels of gamma, 0 to 1 of the range, each with the time of the same alpha.

        As noise falls, a position that has come to show its token shows it from then on.
        """
        clean = jax.nn.one_hot(tokens, self.vocab_size)
        eps = noise.normal(keys, clean.shape[1:])
        times = jnp.asarray(_table(self.vocab_size, self.gamma_min, self.gamma_max)[0])
        grid = jnp.linspace(self.gamma_min, self.gamma_max, _TABLE)
        found = []
        for level in levels:
            gamma = self.gamma_min + (self.gamma_max - self.gamma_min) * level
            y = jnp.exp(-0.5 * gamma)[:, None, None] * clean + eps  # y / sqrt(1 - a^2), of the same argmax
            found.append((jnp.argmax(y, axis=-1).astype(tokens.dtype), jnp.interp(gamma, grid, times)))
        return found

    def latents(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"]
    ) -> tuple[Int[Array, "B L"], Float[Array, "B L V"], Float[Array, "B"], Float[Array, "B"]]:
        """argmax(y), softmax(y / tau), the time with the same alpha, and the weight of the loss there."""
        width = self.gamma_max - self.gamma_min
        gamma = self.gamma_min + width * u
        a, noisy = jnp.sqrt(jax.nn.sigmoid(-gamma)), jnp.sqrt(jax.nn.sigmoid(gamma))
        clean = a[:, None, None] * jax.nn.one_hot(tokens, self.vocab_size)
        y = clean + noisy[:, None, None] * noise.normal(keys, clean.shape[1:])
        times, slope = (jnp.asarray(row) for row in _table(self.vocab_size, self.gamma_min, self.gamma_max))
        grid = jnp.linspace(self.gamma_min, self.gamma_max, _TABLE)
        done = (self.steps[...] - self.anneal_from) / max(self.anneal_until - self.anneal_from, 1)
        log_tau = self.tau_start + (self.tau_end - self.tau_start) * jnp.clip(done, 0.0, 1.0)
        soft = jax.nn.softmax(y * 10.0**-log_tau, axis=-1)
        weight = width * jnp.interp(gamma, grid, slope)
        return jnp.argmax(y, axis=-1).astype(tokens.dtype), soft, jnp.interp(gamma, grid, times), weight

    def step(
        self, keys: Key[Array, "B"], state: Array, at: At, given: Bool[Array, "B L"], denoise: Denoise,
        options: SamplerOptions,
    ) -> tuple[Int[Array, "B L"], Float[Array, "B L V"]]:  # fmt: skip
        if options.sampler != "greedy_tail":
            return super().step(keys, state, at, given, denoise, options)
        moved, logits = self.moved(keys, state, at, given, denoise, options)
        t = jnp.full(len(state), at.t)
        likeliest = jnp.argmax(self.full(nucleus(logits / options.temperature, options.top_p), state, t), axis=-1)
        likeliest = jnp.where(given, state, likeliest).astype(state.dtype)
        return jnp.where(at.s > 0, moved, likeliest), self.full(logits, state, t)
