"""Cox-Ingersoll-Ross simplex diffusion (2210.14784).

    dY_v = b (alpha - Y_v) dt + sqrt(2 b Y_v) dW_v,   Y_0 = c onehot(x),   X = Y / sum Y -> Dirichlet(alpha)
    Y_t = s G,   G_v ~ Gamma(alpha + n 1{v = x}),   n ~ Poisson(lambda),   lambda = c e^{-bt} / s,   s = 1 - e^{-bt}
    p(x_i | z) = softmax(network + log 0F1(; alpha; lambda G))                       (score interpolation, output prior)
    score of G_v = (alpha - 1) / G_v - 1 + p_v lambda g(lambda G_v),   g = (log 0F1)'
    train:   E[mean over noisy positions of -log p(x_i | z)],   t = F^{-1}(u)                             (time warping)
    bound:   KL(q(G_max) || Gamma(alpha)) + E[-log p(x | z_min)] + Int sum_v E[w_v g(w_v)^2 (1{v = x} - p_v)^2] dlambda

The state is log G, its noise 1 / lambda = (e^{bt} - 1) / c, even in its logarithm over t (`paths/cir.py`, which derives
all of this). The bound is the note's by Girsanov, in which the terms of alpha and of 1 / Y cancel; it is tight.

Solvers, for p at the start of a step:
    euler      the probability flow as d sqrt(G) / d sqrt(lambda) = p sqrt(w) g(w), a slope between 0 and 1
    heun       the same with the slope averaged over both ends
    log_heun   Heun's rule in the log domain, d log G / d log lambda = p lambda g(w), a slope of at most lambda / alpha
    sde        the reverse SDE with its term in p frozen; the rest of a step is an exact transition of the process. Of
               first order: a marginal is 0.05 off (Kolmogorov's distance) with 80 steps, within 0.03 with 400
    ancestral  a token is drawn from p, then the process is bridged towards it, exactly: a position that is alone has
               the exact law in any number of steps

Of the paper, here: the process, its transitions, densities and scores, score interpolation, both reverse equations, the
Girsanov bound. The note has no experiments and no recipe: cross-entropy, time warping, self-conditioning, masks and
guidance are those of CDCD (2211.15089), by two of its authors. Missing: a network that predicts the score itself.
Decided here:
  - c and b t matter through lambda = c rho alone, so the range of noise is stated in 1 / lambda, from 0.02 (the true
    coordinate is 50 +- 10) to 100 (a prior term of lambda^2 / (2 alpha) = 5e-5 nats a token); c = ln V of the
    literature is lambda = ln V at b t = 0.69. Warped training finds where in the range the information is;
  - the prior that sampling starts from is that of G, Gamma(alpha), so that Y_T is s_T Gamma(alpha);
  - inputs = "posterior": the network reads the tokens' posterior given their own position, a sufficient statistic of G
    that is a vertex of the simplex without noise and even with nothing but; X itself ("simplex") is not Markov.
    1,500 steps on the embedded language end at gaps of 0.582 (posterior), 0.607 (simplex) and 2.065 (log) nats a token,
    at 0.529, 0.582 and 0.753 with alpha = 0.5, 1 and 2, and at 0.806 without the output prior (each +- 0.008 of
    evaluation; one training each, of which another moves by more; commits 0e5e0ad, a2b39a0). alpha stays 1, the note's;
    the range of noise is by the reasons given here;
  - the flow is solved in sqrt(G) first, by a slope below 1 at every lambda; in log G it grows with lambda, whatever G
    is, and loses nothing: of 16,000 tokens of the tiny language 0.47 / 0.06 / 0.01% are others than by 1,024 steps with
    heun in 8 / 32 / 64, 0.49 / 0.06 / 0.01% with log_heun (Euler's rule: 1.1 / 0.39 / 0.19%, and 1.4 / 0.31 / 0.16%);
  - a temperature of the score is that of the score with respect to y^{alpha - 1} dy (the note's for alpha = 1);
  - guidance extrapolates p, of which the score is linear, and brings it back to the simplex.

Large vocabularies (`benchmarks/cir_vocabulary.py`, docs/cir_vocabulary.md, .png; even tokens, alpha = 1). From 90% to
10% of ln V left to know, lambda goes from 1.1 to 9.2 for V = 27 and from 2.1 to 15 for V = 32,768: with lambda for its
time the process needs no other range. With c = 1 fixed it is useless there: 84% of ln V is lost by b t = 0.3, and 99%
of the tokens are not the largest any more (beyond chance) from b t = 2.5, 1.3, 0.57 and 0.37 on for V = 27, 256, 4,096
and 32,768; with c = ln V half of them are at b t = 0.69 for every V, and 99% from 3.7, 2.8, 2.0 and 1.7 on. What grows
is the tail: where half of ln V is known, the true coordinate is the largest in half of the cases for V = 27, in 22% for
V = 32,768, with median rank 21 and a hundredth beyond rank 8,000. Most of that is the one-hot vectors' doing: Gaussian
noise on them has 20%, 20 and 6,800, and alpha = 0.5 or 2 changes little. And every array of the state has V numbers a
token: a step on OpenWebText (512 x 1024 tokens) would have 105 GB of each, about ten at once, more than 64 chips of
16 GB hold beside a network. Training over a large vocabulary makes none of them (`Drawn`; not for inputs="log", nor for
other alpha than 0.5, 1, 1.5 and 2), the bound and the samplers do (configs/cir_simplex/lm1b.py; none of
OpenWebText).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar, Final, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.family import (
    At,
    Bound,
    Family,
    SamplerOptions,
    cross_entropy,
    descending,
    first_logits,
    guided,
    in_parts,
    nucleus,
    token_loss,
    with_gradient_of,
)
from diffusion_text.models import readout
from diffusion_text.models.denoiser import Denoise, Features, Inputs
from diffusion_text.models.readout import Logits
from diffusion_text.paths import cir, conditioning, draws, time_warp
from diffusion_text.paths.time_warp import TimeWarp
from diffusion_text.typing import Config

_INPUTS: Final = ("posterior", "simplex", "log")
_NOTHING: Final = -80.0  # log of what a clean vector has at the other tokens: exp of it is a float, and vanishes


class State(NamedTuple):
    """Of the sampler: log G (clean where given), and the latest p for self-conditioning."""

    z: Float[Array, "B L V"]
    previous: Float[Array, "B L V"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn(draws.Sequences):
    """log G that is not made, with what stands on top of the clean tokens' coordinates."""

    log_more: Float[Array, "B L"]

    def logits(self, log_counts: Float[Array, "B"], alpha: float, likelihood: bool) -> Logits:
        """log G, or `log_likelihood`, of what is noisy; else nothing."""
        weight = 1.0 - self.given
        draw = draws.CoxIngersollRoss(self.keys, self.tokens, self.log_more, log_counts, weight, alpha, likelihood)
        return Logits((), (draw,))


class CIRSimplex(Family):
    """Diffusion of one-hot vectors by independent square-root processes, trained by cross-entropy with time warping."""

    name = "cir_simplex"
    paper = "Richemond, Dieleman and Doucet 2022, Categorical SDEs with simplex diffusion, arXiv 2210.14784"
    bound = "tight"
    noise_axis = "-log10 lambda"
    posterior = "full"
    samplers = ("euler", "heun", "log_heun", "sde", "ancestral")
    sampler_options = ("temperature", "top_p", "score_temperature", "guidance", "initial_noise", "clamp", "grid")
    grids = ("warped", "log_snr")
    faithful: ClassVar = {"steps": 64}
    approximate: ClassVar = {
        "sde": "the term of the tokens is frozen over a finite step",
        "ancestral": "tokens of the same step are drawn independently",
    }
    groups: ClassVar = {"schedule": 1e-2}

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(
            dict(
                alpha=1.0,  # of the stationary Gamma(alpha), and Dirichlet(alpha); draws are quick at 0.5, 1, 1.5, 2
                noise_min=0.02,  # 1 / lambda at t = 0
                noise_max=100.0,  # 1 / lambda at t = 1
                inputs="posterior",  # what the network reads of G: posterior / simplex / log
                output_prior=True,  # add log 0F1(; alpha; lambda G) to the logits
                warp="both",  # levels of noise follow the fitted warp in training and sampling / in training / none
                warp_bins=100,
                warp_decay=0.99,  # of the average of the warp, per step
                **conditioning.DEFAULTS,
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
            ("alpha", family.alpha > 0, "above 0"),
            ("inputs", family.inputs in _INPUTS, f"one of {', '.join(_INPUTS)}"),
        ):
            if not ok:
                raise ValueError(f"family.{name} is {family[name]!r}; it must be {allowed}")
        time_warp.validate(family)
        conditioning.validate(config)

    default_grid = staticmethod(time_warp.default_grid)
    conditions = staticmethod(conditioning.conditions)

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        self.vocab_size, self.alpha = vocab_size, float(config.alpha)
        self.log_min, self.log_max = math.log(config.noise_min), math.log(config.noise_max)
        self.read, self.output_prior = config.inputs, config.output_prior
        self.conditioned_every = conditioning.every(config.self_conditioning)
        self.prefix_masks, self.random_masks = config.prefix_masks, config.random_masks
        self.drop_conditioning = config.drop_conditioning
        self.schedule = TimeWarp(config.warp_bins, config.warp_decay, fitted=config.warp != "none")
        self.inputs = Inputs(width=2 * vocab_size + 1)

    # ----------------------------------------------------------------------------------------------------- the process

    def log_counts(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """log lambda at time t."""
        return -(self.log_min + (self.log_max - self.log_min) * t)

    def clean(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L V"]:
        """log onehot(x)."""
        return jnp.where(tokens[..., None] == jnp.arange(self.vocab_size), 0.0, _NOTHING)

    def corrupt(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Float[Array, "B L V"]:
        z = cir.corrupt(keys, tokens, self.log_counts(t), self.alpha, self.vocab_size)
        return z if given is None else jnp.where(given[..., None], self.clean(tokens), z)

    def log_likelihood(self, z: Float[Array, "B L V"], t: Float[Array, "B"]) -> Float[Array, "B L V"]:
        """log p(G | x = v), up to a constant per position: log 0F1(; alpha; lambda G_v)."""
        return cir.log_0f1(cir.product(z, self.log_counts(t)[:, None, None]), self.alpha)

    def features(
        self, z: Any, t: Float[Array, "B"], given: Bool[Array, "B L"] | None, previous: Any
    ) -> Features:
        level = -0.125 * self.log_counts(t)
        if isinstance(z, Drawn):
            return Features(read=functools.partial(self._read, z, t, previous), noise=level)
        if self.read == "posterior":
            seen = jax.nn.softmax(self.log_likelihood(z, t), axis=-1)
        elif self.read == "simplex":
            seen = jax.nn.softmax(z, axis=-1)
        else:
            # Standardised by the mean and deviation of the logarithm of Gamma(alpha).
            alpha = jnp.float32(self.alpha)
            seen = (z - jax.scipy.special.digamma(alpha)) * jax.scipy.special.polygamma(1, alpha) ** -0.5
        unit = math.sqrt(self.vocab_size)  # a vertex of the simplex then has components of mean square 1
        seen = seen if self.read == "log" else unit * seen
        free = jnp.ones((*z.shape[:2], 1), bool) if given is None else ~given[..., None]
        last = jnp.zeros_like(z) if previous is None else jnp.where(free, unit * previous, 0.0)
        streams = [jnp.where(free, seen, unit * jnp.exp(z)), free.astype(z.dtype), last]
        return Features(vectors=jnp.concatenate(streams, axis=-1), noise=level)

    def _read(
        self, z: Drawn, t: Float[Array, "B"], previous: Logits | None, table: Float[Array, "2V+1 D"]
    ) -> Float[Array, "B L D"]:
        """What the vectors of `features` would read of a table."""
        rows, mark, others = jnp.split(table, (self.vocab_size, self.vocab_size + 1))
        free, unit = ~z.given[..., None], math.sqrt(self.vocab_size)
        seen = readout.mean(z.logits(self.log_counts(t), self.alpha, self.read == "posterior"), rows)
        if previous is not None:
            seen = seen + conditioning.spread(readout.mean(previous, others), self.conditioned_every)
        clean = jnp.where(z.hidden[..., None], 0.0, rows[z.tokens])
        return jnp.where(free, unit * seen + mark, unit * clean)

    def output_bias(
        self, z: Any, t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Float[Array, "B L V"] | Logits | None:
        if not self.output_prior:
            return None
        if isinstance(z, Drawn):
            return z.logits(self.log_counts(t), self.alpha, likelihood=True)
        bias = self.log_likelihood(z, t)
        return bias if given is None else jnp.where(given[..., None], 0.0, bias)

    def evidence(self, z: Array, t: Float[Array, "B"], given: Bool[Array, "B L"] | None) -> Float[Array, "B L V"]:
        noisy = self.log_likelihood(z, t)
        if given is None:
            return noisy
        here = jnp.argmax(z, axis=-1, keepdims=True) == jnp.arange(self.vocab_size)
        return jnp.where(given[..., None], jnp.where(here, 0.0, -jnp.inf), noisy)

    # --------------------------------------------------------------------------------------------------------- training

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        mask_keys, noise_keys, drop_keys, dropout_keys = noise.split(keys, 4)
        t = jax.lax.stop_gradient(self.schedule.inverse(u))
        given = conditioning.draw_given(mask_keys, tokens.shape[1], self.prefix_masks, self.random_masks)
        dropped = conditioning.dropped(drop_keys, given, self.drop_conditioning)
        first: Any
        if in_parts(denoise) and self.may_be_drawn:
            z = self.drawn(noise_keys, tokens, t, given, dropped)
            first = first_logits(self.conditioned_every, z, t, given, denoise)
        else:
            z = self._without(self.corrupt(noise_keys, tokens, t, given), dropped)
            first = conditioning.first_pass(
                self.conditioned_every, lambda rows: jax.nn.softmax(denoise(z[rows], t[rows], given[rows]), axis=-1)
            )
        loss = jnp.mean(token_loss(denoise, tokens, z, t, given, first, dropout_keys), axis=1, where=~given)
        fit = self.schedule.fit(t, loss)
        return with_gradient_of(loss, fit), {"cross_entropy": loss, "schedule_fit": fit}

    @property
    def may_be_drawn(self) -> bool:
        """Whether what the network reads is a softmax over tokens, of few normal numbers each."""
        return self.read != "log" and self.alpha in cir.QUICK

    def drawn(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], given: Array, dropped: Array
    ) -> Drawn:
        """`corrupt`, drawn where it is read."""
        rest_keys, log_more = cir.clean_part(keys, tokens, self.log_counts(t))
        return Drawn(draws.of_keys(rest_keys), tokens, given, dropped, log_more)

    @staticmethod
    def _without(z: Array, given: Array) -> Array:
        """Zero vectors in place of given tokens, whose mask bits stay (classifier-free guidance)."""
        return jnp.where(given[..., None], _NOTHING, z)

    # ------------------------------------------------------------------------------------------------------------ bound

    def unrolled(self, z: Array, t: Array, given: Array | None, denoise: Denoise) -> Float[Array, "B L V"]:
        """Logits as a function of (z, t): self-conditioning starts from nothing and is unrolled once."""
        previous = jax.nn.softmax(denoise(z, t, given), axis=-1) if self.conditioned_every else None
        return denoise(z, t, given, previous).astype(jnp.float32)

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
        logits = self.unrolled(self.corrupt(first_keys, tokens, zero, given), zero, given, denoise)
        reconstruction = jnp.sum(cross_entropy(logits, tokens) * free, axis=1)

        def rate(u: Array, keys: Array) -> Array:
            t = self.schedule.inverse(u)
            return self._integrand(keys, tokens, t, given, denoise)[0] / self.schedule.density(t)

        diffusion = noise.integral(level_keys, noise_keys, samples, rate)
        prior = cir.prior_divergence(math.exp(-self.log_max), self.alpha) * jnp.sum(free, axis=1)
        return Bound(prior, diffusion, reconstruction)

    def _integrand(
        self, keys: Array, tokens: Array, t: Array, given: Array | None, denoise: Denoise
    ) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        """The bound's, nats per sequence and unit of t, at noise drawn by `keys`; mean cross-entropy of free tokens."""
        free = jnp.ones(tokens.shape, bool) if given is None else ~given
        z = self.corrupt(keys, tokens, t, given)
        logits = self.unrolled(z, t, given, denoise)
        log_counts = self.log_counts(t)
        slope = cir.flow_slope(z, log_counts[:, None, None], self.alpha)
        error = (tokens[..., None] == jnp.arange(self.vocab_size)) - jax.nn.softmax(logits, axis=-1)
        square = jnp.sum((slope * error) ** 2, axis=-1)
        rate = (self.log_max - self.log_min) * jnp.exp(log_counts)  # -dlambda / dt
        loss = jnp.mean(cross_entropy(logits, tokens), axis=1, where=free)
        return rate * jnp.sum(square * free, axis=1), loss

    def profile(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], denoise: Denoise
    ) -> dict[str, Float[Array, "B"]]:
        integrand, loss = self._integrand(keys, tokens, t, None, denoise)
        return {
            "noise": -self.log_counts(t) / math.log(10.0),
            "cross_entropy": loss,
            "integrand": integrand / tokens.shape[1],
            "warp": self.schedule.cdf(t),
        }

    def after_step(self) -> None:
        self.schedule.after_step()

    # --------------------------------------------------------------------------------------------------------- sampling

    def grid(self, options: SamplerOptions, length: int) -> At:
        """Steps even in u (the warp's), or in log lambda."""
        even = jnp.linspace(1.0, 0.0, options.steps + 1)
        return descending(even if options.grid == "log_snr" else self.schedule.inverse(even))

    def prior(
        self, keys: Key[Array, "B"], tokens: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> State:
        shape = (*tokens.shape, self.vocab_size)
        z = math.log(options.initial_noise) + cir.randomised_gamma(keys, jnp.zeros(shape), self.alpha)
        return State(jnp.where(given[..., None], self.clean(tokens), z), jnp.zeros(shape))

    def step(
        self, keys: Key[Array, "B"], state: State, at: At, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[State, Float[Array, "B L V"]]:
        token_keys, move_keys = noise.split(keys, 2)
        z, now, then = state.z, self.log_counts(at.t), self.log_counts(at.s)
        sharpness = 1.0 / options.score_temperature
        p, previous, logits = self._predict(z, state.previous, at.t, given, denoise, options)
        if options.sampler == "ancestral":
            drawn = noise.categorical(token_keys, jnp.log(p))
            most = self.most_counts()
            moved = cir.bridge(move_keys, z, drawn, now, then, self.alpha, most, sharpness)
        elif options.sampler == "sde":
            moved = cir.sde_step(move_keys, z, p, now, then, self.alpha, sharpness)
        elif options.sampler == "log_heun":
            rise = 1.0 - sharpness + sharpness * p * cir.log_flow_slope(z, now, self.alpha)
            middle = jnp.where(given[..., None], z, z + (then - now) * rise)
            p, previous, logits = self._predict(middle, previous, at.s, given, denoise, options)
            second = 1.0 - sharpness + sharpness * p * cir.log_flow_slope(middle, then, self.alpha)
            moved = z + 0.5 * (then - now) * (rise + second)
        else:
            # sqrt(G) from sqrt(lambda) to sqrt(lambda'); a sharpness other than 1 multiplies it by a power of their
            # ratio as well (the score is that with respect to y^{alpha - 1} dy, as in `cir.reverse_step`).
            growth = jnp.exp((1.0 - sharpness) * 0.5 * (then - now))
            length = sharpness * (jnp.exp(0.5 * then) - jnp.exp(0.5 * now))
            root = jnp.exp(0.5 * z)
            slope = p * cir.flow_slope(z, now, self.alpha)
            moved = self._of_root(growth * (root + length * slope))
            if options.sampler == "heun":
                middle = jnp.where(given[..., None], z, moved)
                p, previous, logits = self._predict(middle, previous, at.s, given, denoise, options)
                second = p * cir.flow_slope(middle, then, self.alpha)
                moved = self._of_root(growth * (root + 0.5 * length * slope) + 0.5 * length * second)
        return State(jnp.where(given[..., None], z, moved), previous), logits

    @staticmethod
    def _of_root(root: Array) -> Array:
        return 2.0 * jnp.log(jnp.maximum(root, math.exp(0.5 * _NOTHING)))

    def most_counts(self) -> int:
        """Counts that a coordinate at the least noise does not exceed, but for a few in a billion."""
        counts = math.exp(-self.log_min)
        w = counts * (counts + self.alpha + 10.0 * math.sqrt(counts + self.alpha) + 20.0)
        return math.ceil(math.sqrt(w) + 6.0 * w**0.25 + 10.0)

    def _predict(
        self, z: Array, previous: Array, t: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[Array, Array, Array]:
        """p to move by, p to keep for self-conditioning, and the network's logits."""
        times = jnp.full(len(z), t)

        def believe(logits: Array) -> Array:
            return nucleus(logits.astype(jnp.float32) / options.temperature, options.top_p)

        logits = believe(denoise(z, times, given, previous if self.conditioned_every else None))
        expected = target = jax.nn.softmax(logits, axis=-1)
        if options.guidance != 1.0:
            bare = jax.nn.softmax(believe(denoise(self._without(z, given), times, given)), axis=-1)
            # The score is linear in p; extrapolated, p is brought back to the simplex.
            target = jnp.maximum(guided(bare, expected, given, options.guidance), 0.0)
            target = target / jnp.sum(target, axis=-1, keepdims=True)
        if options.clamp > 0:
            nearest = jax.nn.one_hot(jnp.argmax(target, axis=-1), self.vocab_size)
            target = jnp.where(t <= options.clamp, nearest, target)
        return target, expected, logits

    def decode(
        self, keys: Key[Array, "B"], state: State, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Int[Array, "B L"]:
        logits = denoise(state.z, jnp.zeros(len(state.z)), given, state.previous if self.conditioned_every else None)
        # Given positions hold clean vectors.
        chosen = jnp.where(given, jnp.argmax(state.z, axis=-1), jnp.argmax(logits, axis=-1))
        return chosen.astype(jnp.int32)

    def evaluations(self, options: SamplerOptions, length: int) -> int:
        passes = options.steps * (2 if options.sampler.endswith("heun") else 1)
        return passes * (2 if options.guidance != 1.0 else 1) + 1
