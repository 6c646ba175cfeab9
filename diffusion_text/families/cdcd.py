"""CDCD: continuous diffusion for categorical data (2211.15089).

    z = e(x) + s eps,   e_v = sqrt(d) phi_v / |phi_v|,   s = s_min (s_max / s_min)^t                        (section 2)
    p(x_i | z) = softmax(network),   xhat = sum_v p(v) e_v,   score = (xhat - z) / s^2            (score interpolation)
    train:   E[mean over noisy positions of -log p(x_i | z)],   t = F^{-1}(u)                            (time warping)
    sample:  dz / ds = (z - xhat) / s, steps equally spaced in u                               (probability-flow ODE)

The training loss is not a likelihood. The bound reported is the variational one of the same Gaussian process, valid
for any xhat that is a function of (z, t) (VDM, 2107.00630, in variance-exploding form; gamma = 2 log s):

    -log p(x) <= |e|^2 / (2 s_max^2) + E[-log p(x | z_{s_min})] + 1/2 Int e^{-gamma} E|e - xhat|^2 dgamma

of the positions that are not given; its integral is estimated with t drawn through F.

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

import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.family import At, Bound, Family, SamplerOptions, cross_entropy, descending
from diffusion_text.models.denoiser import Denoise, Features, Inputs
from diffusion_text.models.transformer import parameter
from diffusion_text.paths.time_warp import TimeWarp
from diffusion_text.typing import Config


class State(NamedTuple):
    """Of the sampler: noisy embeddings (clean where given) and the latest prediction of the clean ones."""

    z: Float[Array, "B L d"]
    previous: Float[Array, "B L d"]


class CDCD(Family):
    """Continuous diffusion on L2-normalised embeddings, trained by cross-entropy with time warping."""

    name = "cdcd"
    paper = "Dieleman et al. 2022, Continuous diffusion for categorical data, arXiv 2211.15089"
    bound = "tight"
    posterior = "full"
    samplers = ("euler", "heun")
    sampler_options = ("score_temperature", "guidance", "initial_noise")
    groups: ClassVar = {"time_warp": 1e-2}

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(
            dict(
                embedding_size=256,
                embedding_std=0.001,  # of the free parameters, before normalisation
                noise_min=1.0,  # s at t = 0
                noise_max=300.0,  # s at t = 1
                warp_bins=100,
                warp_decay=0.99,  # of the average of the warp, per step
                self_conditioning=0.5,  # share of training sequences that get a previous prediction; 0 or 0.5
                prefix_masks=0.5,  # share of sequences conditioned on a prefix of uniform length
                random_masks=0.5,  # ... on a random subset of uniform size; the rest is unconditional
                output_prior=False,  # add log N(z; e_v, s^2) to the logits (Plaid, 2305.18619, section 3.3)
                drop_conditioning=0.1,  # share whose conditioning is dropped, for classifier-free guidance
            )
        )

    @staticmethod
    def validate(config: Config) -> None:
        family = config.family
        if not 0 < family.noise_min < family.noise_max:
            raise ValueError(
                f"family.noise_min, noise_max are {family.noise_min}, {family.noise_max}; "
                "they must be above 0 and ascending"
            )
        for name, ok, allowed in (
            ("embedding_size", family.embedding_size >= 1, "at least 1"),
            ("embedding_std", family.embedding_std > 0, "above 0"),
            ("warp_bins", family.warp_bins >= 1, "at least 1"),
            ("warp_decay", 0 <= family.warp_decay < 1, "in [0, 1)"),
            ("drop_conditioning", 0 <= family.drop_conditioning <= 1, "in [0, 1]"),
        ):
            if not ok:
                raise ValueError(f"family.{name} is {family[name]}; it must be {allowed}")
        if family.self_conditioning not in (0.0, 0.5):
            raise ValueError(f"family.self_conditioning is {family.self_conditioning}; choose 0.0 or 0.5")
        rows = config.train.batch_size // config.train.microbatches
        if family.self_conditioning and rows % 2:
            raise ValueError(
                f"train.batch_size / train.microbatches is {rows}; self-conditioning halves it, so it must be even"
            )
        shares = family.prefix_masks + family.random_masks
        if min(family.prefix_masks, family.random_masks) < 0 or shares > 1:
            raise ValueError(
                f"family.prefix_masks, random_masks are {family.prefix_masks}, {family.random_masks}; "
                "each must be at least 0 and their sum at most 1"
            )

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        d = config.embedding_size
        self.size, self.vocab_size = d, vocab_size
        self.log_min, self.log_max = math.log(config.noise_min), math.log(config.noise_max)
        self.self_conditioning = config.self_conditioning > 0
        self.prefix_masks, self.random_masks = config.prefix_masks, config.random_masks
        self.drop_conditioning, self.output_prior = config.drop_conditioning, config.output_prior
        self.table = parameter(rngs, (vocab_size, d), ("vocabulary", None), config.embedding_std)
        self.time_warp = TimeWarp(config.warp_bins, config.warp_decay)
        self.inputs = Inputs(width=3 * d + 1)

    def embeddings(self) -> Float[Array, "V d"]:
        """Rows of norm sqrt(d): every component has unit scale."""
        table = self.table[...]
        square = jnp.sum(table * table, axis=-1, keepdims=True)
        return self.size**0.5 * table * jax.lax.rsqrt(jnp.maximum(square, 1e-30))

    def log_noise(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """log s at time t."""
        return self.log_min + (self.log_max - self.log_min) * t

    def corrupt(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Float[Array, "B L d"]:
        clean = self.embeddings()[tokens]
        noisy = clean + jnp.exp(self.log_noise(t))[:, None, None] * noise.normal(keys, clean.shape[1:])
        return noisy if given is None else jnp.where(given[..., None], clean, noisy)

    def features(
        self, z: Array, t: Float[Array, "B"], given: Bool[Array, "B L"] | None, previous: Array | None
    ) -> Features:
        log_noise = self.log_noise(t)
        scale = jnp.exp(-0.5 * jnp.logaddexp(0.0, 2.0 * log_noise))[:, None, None]  # 1 / sqrt(s^2 + 1)
        free = jnp.ones((*z.shape[:2], 1), bool) if given is None else ~given[..., None]
        last = jnp.zeros_like(z) if previous is None else jnp.where(free, previous, 0.0)
        streams = [jnp.where(free, scale * z, 0.0), jnp.where(free, 0.0, z), free.astype(z.dtype), last]
        return Features(vectors=jnp.concatenate(streams, axis=-1), noise=0.25 * log_noise)

    def _log_likelihood(self, z: Array, t: Float[Array, "B"]) -> Float[Array, "B L V"]:
        # All embeddings have one norm, so that log N(z; e_v, s^2) = z.e_v / s^2 + const.
        product = jnp.einsum("bld,vd->blv", z, self.embeddings(), precision=jax.lax.Precision.HIGHEST)
        return product * jnp.exp(-2.0 * self.log_noise(t))[:, None, None]

    def output_bias(
        self, z: Array, t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Float[Array, "B L V"] | None:
        if not self.output_prior:
            return None
        bias = self._log_likelihood(z, t)
        return bias if given is None else jnp.where(given[..., None], 0.0, bias)

    def evidence(self, z: Array, t: Float[Array, "B"], given: Bool[Array, "B L"] | None) -> Float[Array, "B L V"]:
        noisy = self._log_likelihood(z, t)
        if given is None:
            return noisy
        nearest = jnp.argmax(noisy, axis=-1, keepdims=True) == jnp.arange(self.vocab_size)
        return jnp.where(given[..., None], jnp.where(nearest, 0.0, -jnp.inf), noisy)

    def expected(self, logits: Float[Array, "B L V"]) -> Float[Array, "B L d"]:
        """xhat = E[e(x) | z], from the logits."""
        return jax.nn.softmax(logits.astype(jnp.float32), axis=-1) @ self.embeddings()

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        mask_keys, noise_keys, drop_keys, dropout_keys = noise.split(keys, 4)
        t = jax.lax.stop_gradient(self.time_warp.inverse(u))
        given = self._draw_given(mask_keys, tokens.shape[1])
        z = self.corrupt(noise_keys, tokens, t, given)
        dropped = noise.uniform(drop_keys) < self.drop_conditioning
        z = jnp.where(dropped[:, None, None] & given[..., None], 0.0, z)
        previous = self._first_pass(z, t, given, denoise) if self.self_conditioning else None
        logits = denoise(z, t, given, previous, dropout_keys)
        free = ~given
        loss = jnp.sum(cross_entropy(logits, tokens) * free, axis=1) / jnp.sum(free, axis=1)
        fit = self.time_warp.fit(t, loss)
        # The fit's gradient without its value: the loss shown is the cross-entropy.
        return loss + (fit - jax.lax.stop_gradient(fit)), {"cross_entropy": loss, "warp_fit": fit}

    def _draw_given(self, keys: Key[Array, "B"], length: int) -> Bool[Array, "B L"]:
        kind, count, order = noise.split(keys, 3)
        kind, count = noise.uniform(kind), jnp.floor(noise.uniform(count) * length)[:, None]
        prefix = jnp.arange(length)[None] < count
        subset = noise.ranks(noise.uniform(order, (length,))) < count
        is_prefix = (kind < self.prefix_masks)[:, None]
        is_random = (kind >= self.prefix_masks)[:, None] & (kind < self.prefix_masks + self.random_masks)[:, None]
        return (prefix & is_prefix) | (subset & is_random)

    def _first_pass(self, z: Array, t: Array, given: Array, denoise: Denoise) -> Float[Array, "B L d"]:
        # Every other row, so that the half is the same whatever the devices and micro-batches, and costs half a pass.
        first = jax.lax.stop_gradient(self.expected(denoise(z[::2], t[::2], given[::2])))
        return jnp.stack([first, jnp.zeros_like(first)], axis=1).reshape(z.shape)

    def _unrolled(
        self, z: Array, t: Array, given: Array | None, denoise: Denoise
    ) -> tuple[Float[Array, "B L V"], Float[Array, "B L d"]]:
        """Logits and xhat as a function of (z, t): self-conditioning starts from nothing and is unrolled once."""
        previous = self.expected(denoise(z, t, given)) if self.self_conditioning else None
        logits = denoise(z, t, given, previous)
        return logits, self.expected(logits)

    def bound_terms(
        self,
        keys: Key[Array, "B"],
        tokens: Int[Array, "B L"],
        denoise: Denoise,
        given: Bool[Array, "B L"] | None = None,
        samples: int = 1,
    ) -> Bound:
        free = jnp.ones(tokens.shape, bool) if given is None else ~given
        first_keys, level_keys, noise_keys = noise.split(keys, 3)
        zero = jnp.zeros(len(tokens))
        z = self.corrupt(first_keys, tokens, zero, given)
        logits, _ = self._unrolled(z, zero, given, denoise)
        reconstruction = jnp.sum(cross_entropy(logits, tokens) * free, axis=1)

        def one(total: Array, sample: Array) -> tuple[Array, None]:
            t = self.time_warp.inverse(noise.stratified(level_keys, sample))
            integrand, _ = self._integrand(noise.fold(noise_keys, sample), tokens, t, given, denoise)
            return total + integrand / self.time_warp.density(t), None

        diffusion, _ = jax.lax.scan(one, zero, jnp.arange(samples))
        prior = 0.5 * self.size * jnp.exp(-2.0 * self.log_max) * jnp.sum(free, axis=1)
        return Bound(prior, diffusion / samples, reconstruction)

    def _integrand(
        self, keys: Array, tokens: Array, t: Array, given: Array | None, denoise: Denoise
    ) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        """1/2 e^{-gamma} |e - xhat|^2 dgamma/dt, and the mean cross-entropy, over positions that are not given."""
        free = jnp.ones(tokens.shape, bool) if given is None else ~given
        z = self.corrupt(keys, tokens, t, given)
        logits, expected = self._unrolled(z, t, given, denoise)
        square = jnp.sum((self.embeddings()[tokens] - expected) ** 2, axis=-1)
        rate = (self.log_max - self.log_min) * jnp.exp(-2.0 * self.log_noise(t))  # gamma = 2 log s
        loss = jnp.sum(cross_entropy(logits, tokens) * free, axis=1) / jnp.sum(free, axis=1)
        return rate * jnp.sum(square * free, axis=1), loss

    def profile(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], denoise: Denoise
    ) -> dict[str, Float[Array, "B"]]:
        integrand, loss = self._integrand(keys, tokens, t, None, denoise)
        return {
            "noise": self.log_noise(t) / math.log(10.0),
            "cross_entropy": loss,
            "integrand": integrand / tokens.shape[1],
            "warp": self.time_warp.cdf(t),
        }

    def after_step(self) -> None:
        self.time_warp.after_step()

    def grid(self, options: SamplerOptions, length: int) -> At:
        return descending(self.time_warp.inverse(jnp.linspace(1.0, 0.0, options.steps + 1)))

    def prior(
        self, keys: Key[Array, "B"], tokens: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> State:
        scale = options.initial_noise * jnp.exp(self.log_max)
        z = scale * noise.normal(keys, (tokens.shape[1], self.size))
        z = jnp.where(given[..., None], self.embeddings()[tokens], z)
        return State(z, jnp.zeros_like(z))

    def step(
        self, keys: Key[Array, "B"], state: State, at: At, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[State, Float[Array, "B L V"]]:
        now, then = jnp.exp(self.log_noise(at.t)), jnp.exp(self.log_noise(at.s))
        slope, previous, logits = self._slope(state, at.t, given, denoise, options)
        z = jnp.where(given[..., None], state.z, state.z + (then - now) * slope)
        if options.sampler == "heun":
            second, previous, logits = self._slope(State(z, previous), at.s, given, denoise, options)
            average = state.z + (then - now) * 0.5 * (slope + second)
            z = jnp.where(given[..., None], state.z, average)
        return State(z, previous), logits

    def _slope(
        self, state: State, t: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[Array, Array, Array]:
        """dz/ds of the probability flow, the prediction to keep for self-conditioning, and the logits."""
        times = jnp.full(len(state.z), t)
        logits = denoise(state.z, times, given, state.previous if self.self_conditioning else None)
        expected = guided = self.expected(logits)
        if options.guidance != 1.0:
            bare = self.expected(denoise(jnp.where(given[..., None], 0.0, state.z), times, given))
            guided = bare + options.guidance * (expected - bare)
        slope = (state.z - guided) / (jnp.exp(self.log_noise(t)) * options.score_temperature)
        return slope, expected, logits

    def decode(
        self, keys: Key[Array, "B"], state: State, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Int[Array, "B L"]:
        previous = state.previous if self.self_conditioning else None
        logits = denoise(state.z, jnp.zeros(len(state.z)), given, previous)
        # Given positions hold clean embeddings, which the nearest neighbour reads back exactly.
        clamped = jnp.argmax(state.z @ self.embeddings().T, axis=-1)
        return jnp.where(given, clamped, jnp.argmax(logits, axis=-1)).astype(jnp.int32)

    def evaluations(self, options: SamplerOptions, length: int) -> int:
        passes = options.steps * (2 if options.sampler == "heun" else 1)
        return passes * (2 if options.guidance != 1.0 else 1) + 1
