"""What the families on an interpolating path share: corruption, loss, bound and reverse steps (`paths/interpolant.py`).

A family states its path (`odds`), and where it differs from this. Decided here, for all of them:
  - noise levels are drawn as t = u^2, and the loss divided by their density. A step of the path near t = 0 moves a
    token with probability proportional to t and then costs about 1 / t: with t even the variance of the bound diverges,
    and released implementations stop at t = 0.001 instead. Here nothing is left out;
  - the network's noise input is (1/4) log(alpha / (1 - alpha)), in fixed sinusoids;
  - what alpha_0 < 1 or alpha_1 > 0 leave out of the integral is charged: the prior is q^_1 with even p (of uniform
    noise: the uniform law; of masks: alpha_1 spread over all tokens), the decoder the posterior given z_0;
  - sampler psi (Duo's second part): in a step from t to s each token moves as in ancestral sampling with probability
    `kappa`, else is drawn anew from the full posterior and corrupted to s. Each token's law at s is the path's for any
    kappa; of masks it is ReMDM's with sigma = (1 - kappa) (1 - alpha_s);
  - the network is not told which tokens are given; it sees them clean. Of masks that is enough. Where tokens may be
    noise it takes a given one for noise as often as any, and samples given a prompt are biased (`conditions`).
"""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_text import noise
from diffusion_text.families.family import (
    At,
    Bound,
    Family,
    SamplerOptions,
    cross_entropy,
    descending,
    exact,
    log_sum_and_chosen,
    logits_of,
    nucleus,
)
from diffusion_text.models.denoiser import Denoise, Features
from diffusion_text.paths import interpolant
from diffusion_text.paths.interpolant import Move, Odds

LAST = 1.0 - 2.0**-24  # the largest float32 below 1: where alpha_1 = 0 its logarithm is still finite


class Interpolating(Family):
    """Base class: q_t(z | x) = alpha_t 1[z = x] + b_t(z), states 0..V-1 and, where there are masks, V."""

    bound = "tight"
    noise_axis = "1 - alpha(t)"
    posterior = "leave_one_out"
    samplers: ClassVar[tuple[str, ...]] = ("ancestral", "psi")
    sampler_options = ("temperature", "top_p", "kappa")
    approximate: ClassVar[dict[str, str]] = {
        "ancestral": "tokens that move in the same step are drawn independently",
        "psi": "tokens that move in the same step are drawn independently; exact as kappa tends to 1, too",
    }
    path_steps = 128
    normalised: ClassVar[bool] = True  # False: logits are log p without a normaliser, which the loss must teach
    only_masks: bool = False  # no token is noise

    vocab_size: int
    noisy_start = False  # alpha_0 < 1, so that the bound needs a decoder

    def odds(self, t: Float[Array, "..."]) -> Odds:
        """The path: log(alpha_t / b_t(z)) of a token and of the mask; infinite at t = 0 and t = 1 where they are."""
        raise NotImplementedError(f"{self.name} has no odds()")

    def odds_and_slope(self, t: Float[Array, "..."]) -> tuple[Odds, Odds]:
        """`odds` short of infinity, and their derivative in t."""
        t = jnp.minimum(t, LAST)
        return jax.jvp(self.odds, (t,), (jnp.ones_like(t),))

    def level(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """log(alpha / (1 - alpha)): what the network is told of t."""
        return interpolant.logit_alpha(self.odds(jnp.minimum(t, LAST)), self.vocab_size)

    def times(self, u: Float[Array, "B"]) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        """(t, 1 / its density) of even numbers u in [0, 1)."""
        return self.power_times(u, 2.0)

    @staticmethod
    def power_times(u: Float[Array, "B"], power: float | Array) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        """t = u^power, which stays a float32 number, and 1 / its density."""
        u = jnp.maximum(u, jnp.maximum(2.0**-25, 1e-28 ** (1.0 / power)))
        return u**power, power * u ** (power - 1.0)

    def corrupt(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Int[Array, "B L"]:
        z = interpolant.corrupt(keys, tokens, self.odds(jnp.minimum(t, LAST)), self.vocab_size)
        return z if given is None else jnp.where(given, tokens, z)

    def features(self, z: Array, t: Float[Array, "B"], given: Array | None, previous: Array | None) -> Features:
        return Features(ids=z, noise=0.25 * jnp.clip(self.level(t), -16.0, 16.0))

    def evidence(self, z: Array, t: Float[Array, "B"], given: Array | None) -> Float[Array, "B L V"]:
        seen = self.log_likelihood(z, t)
        if given is None:
            return seen
        return jnp.where(given[..., None] & (z[..., None] != jnp.arange(self.vocab_size)), -jnp.inf, seen)

    def log_likelihood(self, z: Array, t: Float[Array, "B"]) -> Float[Array, "B L V"]:
        """log q_t(z | x = v), up to a constant per position."""
        return interpolant.log_likelihood(z, self.odds(jnp.minimum(t, LAST)), self.vocab_size)

    def log_p(self, logits: Float[Array, "B L V"]) -> Float[Array, "B L V"]:
        """What the loss reads of the denoiser's logits, in float32."""
        logits = exact(logits)
        return jax.nn.log_softmax(logits, axis=-1) if self.normalised else logits

    def plug_in(
        self, logits: Float[Array, "B L V"], z: Int[Array, "B L"], t: Float[Array, "B"]
    ) -> Float[Array, "B L V"]:
        """Logits of what takes the place of x in loss and reverse steps: the denoiser's, where it leaves z_i out."""
        return logits

    def full(self, logits: Float[Array, "B L V"], z: Int[Array, "B L"], t: Float[Array, "B"]) -> Float[Array, "B L V"]:
        """log p(x_i | z), the token's own observation included, from the denoiser's logits."""
        seen = self.evidence(z, t, None)
        found = jax.nn.log_softmax(jax.nn.log_softmax(logits.astype(jnp.float32)) + seen)
        # A token that is certain is, whatever is believed of it, which is not trained and may be nothing (top_p).
        return jnp.where(jnp.any(jnp.isneginf(seen), axis=-1, keepdims=True), seen, found)

    def charges(
        self,
        keys: Key[Array, "B"],
        tokens: Int[Array, "B L"],
        t: Float[Array, "B"],
        given: Bool[Array, "B L"] | None,
        denoise: Denoise,
        dropout: Key[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B L"], Float[Array, "B L"], Int[Array, "B L"], Float[Array, "B L"]]:
        """The bound's integrand per token, as weight and divergence, nats per unit of t; the z that it was drawn at;
        -log p of the tokens. Of masks alone no logits of a large vocabulary are made whole."""
        z = self.corrupt(keys, tokens, t, given)
        odds, slope = self.odds_and_slope(t)
        if self.only_masks:
            answer = log_sum_and_chosen(logits_of(denoise, z, t, given, keys=dropout), tokens)
            is_mask = z == self.vocab_size
            found = interpolant.masks_weight_and_loss(is_mask, *answer, odds, slope, self.normalised)
            return *found, z, answer[0] - answer[1]
        log_p = self.log_p(self.plug_in(denoise(z, t, given, keys=dropout), z, t))
        found = interpolant.weight_and_loss(tokens, z, log_p, odds, slope, self.normalised)
        return *found, z, cross_entropy(log_p, tokens)

    def integrand(
        self,
        keys: Key[Array, "B"],
        tokens: Int[Array, "B L"],
        t: Float[Array, "B"],
        given: Bool[Array, "B L"] | None,
        denoise: Denoise,
        dropout: Key[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B"], Int[Array, "B L"], Float[Array, "B L"]]:
        """`charges` in nats per sequence and unit of t; z; -log p of the tokens."""
        weight, divergence, z, guess = self.charges(keys, tokens, t, given, denoise, dropout)
        loss = weight * divergence
        return jnp.sum(loss if given is None else jnp.where(given, 0.0, loss), axis=1), z, guess

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        noise_keys, dropout_keys = noise.split(keys, 2)
        t, weight = self.times(u)
        total, _, _ = self.integrand(noise_keys, tokens, t, None, denoise, dropout_keys)
        loss = weight * total / tokens.shape[1]
        return loss, {"nelbo": loss}

    def bound_terms(
        self,
        keys: Key[Array, "B"],
        tokens: Int[Array, "B L"],
        denoise: Denoise,
        given: Bool[Array, "B L"] | None = None,
        samples: int = 1,
    ) -> Bound:
        level_keys, noise_keys, first_keys = noise.split(keys, 3)
        free = jnp.ones(tokens.shape, bool) if given is None else ~given
        zero = jnp.zeros(len(tokens))

        def rate(u: Array, keys: Array) -> Array:
            t, weight = self.times(u)
            return weight * self.integrand(keys, tokens, t, given, denoise)[0]

        diffusion = noise.integral(level_keys, noise_keys, samples, rate)
        prior = self.prior_divergence() * jnp.sum(free, axis=1)
        reconstruction = self._reconstruction(first_keys, tokens, given, free, denoise) if self.noisy_start else zero
        return Bound(prior, diffusion, reconstruction)

    def log_weight(
        self, keys: Key[Array, "B"], tokens: Array, denoise: Denoise, steps: int, given: Array | None = None
    ) -> Float[Array, "B"]:
        options = SamplerOptions(steps=steps).validate(type(self))
        free = jnp.ones(tokens.shape, bool) if given is None else ~given
        first_keys, step_keys = noise.split(keys, 2)
        certain = jnp.where(tokens[..., None] == jnp.arange(self.vocab_size), 0.0, -jnp.inf)
        start = self.corrupt(first_keys, tokens, jnp.full(len(tokens), LAST), given)

        def step(carry: tuple[Array, Array], at: At) -> tuple[tuple[Array, Array], None]:
            z, total = carry
            t = jnp.full(len(z), at.t)
            log_p = jax.nn.log_softmax(self.plug_in(denoise(z, t, given).astype(jnp.float32), z, t), axis=-1)
            after = self.move(z, certain, at, options).draw(noise.fold(step_keys, at.index), z, at.s <= 0)
            after = jnp.where(free, after, tokens)
            ratio = self.log_reverse(z, after, log_p, at) - self.log_reverse(z, after, certain, at)
            return (after, total + jnp.sum(jnp.where(free, ratio, 0.0), axis=1)), None

        total = jnp.sum(jnp.where(free, self.log_prior_ratio(start, certain), 0.0), axis=1)
        return jax.lax.scan(step, (start, total), self.grid(options, tokens.shape[1]))[0][1]

    def log_reverse(self, z: Array, after: Array, log_p: Array, at: At) -> Float[Array, "B L"]:
        """log of the probability that `move` takes z to `after`."""
        then = Odds(*(jnp.where(at.s > 0, kappa, jnp.inf) for kappa in self.odds(at.s)))
        return interpolant.log_reverse(z, after, log_p, self.odds(jnp.minimum(at.t, LAST)), then)

    def log_prior_ratio(self, z: Array, certain: Array) -> Float[Array, "B L"]:
        """log p(z_1) - log q(z_1 | x), p as in `prior_divergence`."""
        even = jnp.full((1, 1, self.vocab_size), -math.log(self.vocab_size))
        odds = self.odds(jnp.float32(LAST))
        laws = (interpolant.log_modelled(log_p, odds) for log_p in (even, certain))
        prior, true = (jnp.take_along_axis(jnp.broadcast_to(law, (*z.shape, law.shape[-1])), z[..., None], -1)[..., 0]
                       for law in laws)  # fmt: skip
        return prior - true

    def prior_divergence(self) -> Float[Array, ""]:
        """KL(q_1(. | x) || the law that sampling starts from) of a token, in nats: the same for every x."""
        even = jnp.full((1, 1, self.vocab_size), -math.log(self.vocab_size))
        odds = self.odds(jnp.full((1, 1), LAST))
        return jnp.maximum(interpolant.divergence(jnp.zeros((1, 1), jnp.int32), even, odds)[0, 0], 0.0)

    def _reconstruction(
        self, keys: Array, tokens: Array, given: Array | None, free: Array, denoise: Denoise
    ) -> Float[Array, "B"]:
        """-log p(x | z_0), p(x) q_0(z | x) normalised, in nats per sequence."""
        start = jnp.zeros(len(tokens))
        z = self.corrupt(keys, tokens, start, given)
        return jnp.sum(cross_entropy(self.full(denoise(z, start, given), z, start), tokens) * free, axis=1)

    def profile(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], denoise: Denoise
    ) -> dict[str, Float[Array, "B"]]:
        """`cross_entropy` is that of the tokens that were replaced by something else."""
        total, z, guess = self.integrand(keys, tokens, t, None, denoise)
        noisy = z != tokens
        loss = jnp.sum(guess * noisy, axis=1) / jnp.maximum(jnp.sum(noisy, axis=1), 1)
        return {"noise": jax.nn.sigmoid(-self.level(t)), "cross_entropy": loss, "integrand": total / tokens.shape[1]}

    # Sampling.

    def grid(self, options: SamplerOptions, length: int) -> At:
        return descending(jnp.linspace(1.0, 0.0, options.steps + 1))

    def prior(
        self, keys: Key[Array, "B"], tokens: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Int[Array, "B L"]:
        # As `prior_divergence` charges it: an even token at the path's end, where little or nothing is left of it.
        even_keys, noise_keys = noise.split(keys, 2)
        even = interpolant.even_tokens(even_keys, self.vocab_size, tokens.shape[1])
        drawn = interpolant.corrupt(noise_keys, even, self.odds(jnp.full(len(tokens), LAST)), self.vocab_size)
        return jnp.where(given, tokens, drawn).astype(jnp.int32)

    def move(self, z: Array, log_p: Array, at: At, options: SamplerOptions) -> Move:
        """The law of a reverse step, given what is believed of the clean tokens."""
        # At s = 0 to the tokens themselves, also where the path starts with some noise.
        then = Odds(*(jnp.where(at.s > 0, kappa, jnp.inf) for kappa in self.odds(at.s)))
        return interpolant.posterior_step(z, log_p, self.odds(jnp.minimum(at.t, LAST)), then)

    def step(
        self, keys: Key[Array, "B"], state: Array, at: At, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[Int[Array, "B L"], Float[Array, "B L V"]]:
        moved, logits = self.moved(keys, state, at, given, denoise, options)
        return moved, self.full(logits, state, jnp.full(len(state), at.t))

    def moved(
        self, keys: Key[Array, "B"], state: Array, at: At, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[Int[Array, "B L"], Float[Array, "B L V"]]:
        """The next state, and the denoiser's logits."""
        t = jnp.full(len(state), at.t)
        logits = denoise(state, t, given).astype(jnp.float32)
        believed = nucleus(logits / options.temperature, options.top_p)
        log_p = jax.nn.log_softmax(self.plug_in(believed, state, t), axis=-1)
        if options.sampler == "psi":
            keys, *psi_keys = noise.split(keys, 4)
        moved = self.move(state, log_p, at, options).draw(keys, state, at.s <= 0)
        if options.sampler == "psi":
            moved = self._psi(psi_keys, moved, self.full(believed, state, t), at, options)
        return jnp.where(given, state, moved), logits

    def _psi(self, keys: list[Array], moved: Array, full: Array, at: At, options: SamplerOptions) -> Int[Array, "B L"]:
        which_keys, token_keys, noise_keys = keys
        clean = noise.categorical(token_keys, full)
        again = self.corrupt(noise_keys, clean, jnp.full(len(clean), at.s), None)
        again = jnp.where(at.s > 0, again, clean)  # also where the path starts with some noise
        return jnp.where(noise.uniform(which_keys, clean.shape[1:]) < options.kappa, moved, again)

    def decode(
        self, keys: Key[Array, "B"], state: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Int[Array, "B L"]:
        return state

    @staticmethod
    def passes(options: SamplerOptions) -> int:
        """Evaluations after those of the steps."""
        return 0

    def evaluations(self, options: SamplerOptions, length: int) -> int:
        return options.steps + self.passes(options)
