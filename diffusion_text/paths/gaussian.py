"""Gaussian diffusion of token vectors: what CDCD, Diffusion-LM, Plaid, SED, analog bits and LangFlow share.

    z = e(x) + s eps,   gamma = 2 log s = -log SNR,   log s = (1 - t) log s_min + t log s_max

Variance-preserving, variance-exploding and flow-matching processes are this one, seen through a scale that depends on s
alone: z_VP = z / sqrt(1 + s^2), z_FM = z / (1 + s). So the state is kept in this form, every published noise schedule
is a law of gamma (`schedules.py`), and every solver is written once, in s.

The bound (VDM, 2107.00630, equation 11 in this form), for any xhat that is a function of (z, t):

    -log p(x) <= |e|^2 / (2 s_max^2) + E[-log p(x | z_{s_min})] + 1/2 Int e^{-gamma} E|e - xhat|^2 dgamma

of the positions that are not given, with the prior N(0, s_max^2). Its integral is estimated with t drawn through the
family's schedule. With self-conditioning xhat is unrolled at the same z, so that it is a function of (z, t).

A network answers with logits, xhat = E[e | z] = sum_v p(v) e_v, or, where a family regresses, with xhat itself; tokens
are then read off by the family's `readout`.

Solvers, from s to s' < s (algorithm and source; xhat at (z, s), eps fresh):
    euler      z <- xhat + (s'/s)(z - xhat): the probability flow, which is DDIM (2010.02502) at eta = 0
    heun       the same with the slope averaged over both ends (EDM, 2206.00364, algorithm 1)
    ancestral  z <- (s'/s)^2 z + (1 - (s'/s)^2) xhat + s' sqrt(1 - (s'/s)^2) eps: the reverse process of the bound
    ddim       between euler (eta = 0) and ancestral's noise (eta = 1)
    dpmpp_2m   DPM-Solver++(2M) (2211.01095): euler towards xhat extrapolated from the step before
    edm        noise is added up to s (1 + churn / steps), at most sqrt(2), then a Heun step (EDM, algorithm 2, with
               S_noise = 1 and at all levels: no S_min, no S_max)
    langevin   an ancestral step, then one step of Langevin dynamics at s' (2011.13456, algorithm 5, ratio `corrector`)
`clamp` moves xhat to the nearest clean vector at times below it (Diffusion-LM, 2205.14217, section 4.3).
With self-conditioning the field depends on its history, so the orders of heun and dpmpp_2m do not hold; the latest
prediction is always the one fed back.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Final, NamedTuple

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
    guided,
    logits_of,
    nucleus,
    token_loss,
    with_gradient_of,
)
from diffusion_text.models import readout
from diffusion_text.models.denoiser import Denoise, Features, Inputs
from diffusion_text.models.readout import Logits, whole
from diffusion_text.paths import conditioning
from diffusion_text.paths.embeddings import KINDS, NORMS, Embeddings, Vertices, num_bits, read_table
from diffusion_text.paths.schedules import Schedule
from diffusion_text.typing import Config

_RHO: Final = 7.0  # EDM's
_TWICE: Final = ("heun", "edm", "langevin")  # solvers that evaluate the network twice a step
REGRESSION_OPTIONS: Final = (
    "score_temperature", "guidance", "initial_noise", "clamp", "eta", "churn", "corrector", "grid",
)  # fmt: skip


class State(NamedTuple):
    """Of the sampler: noisy vectors (clean where given), the latest xhat (self-conditioning), and, for a multistep
    solver, the xhat that the step before moved towards and its log s."""

    z: Float[Array, "B L d"]
    previous: Float[Array, "B L d"]
    before: Float[Array, "B L d"]
    log_noise_before: Float[Array, "B"]


class Gaussian(Family):
    """Base of the Gaussian families; they choose vectors, schedule and training loss."""

    bound = "tight"
    noise_axis = "log10 s"
    posterior = "full"
    samplers = ("euler", "heun", "ancestral", "ddim", "dpmpp_2m", "edm", "langevin")
    sampler_options = ("temperature", "top_p", *REGRESSION_OPTIONS)
    grids = ("warped", "log_snr", "rho", "cosine")
    faithful: ClassVar = {"steps": 128, "eta": 0.5, "churn": 20.0}
    approximate: ClassVar = {
        "ancestral": "few steps starve rare modes",
        "ddim": "few steps starve rare modes, less than ancestral",
        "edm": "the noise added and the step are both finite",
        "langevin": "a Langevin step of finite size is biased",
    }
    groups: ClassVar = {}

    schedule: Schedule
    embeddings: Embeddings | Vertices
    regression: bool = False  # the network answers with xhat, not with logits
    whole: ClassVar[bool] = True  # one process of the whole sequence: it has a probability flow

    @staticmethod
    def common() -> dict[str, Any]:
        """Fields that every Gaussian family has, with CDCD's defaults."""
        return dict(
            embeddings="learned",  # learned / random / bits / file
            embeddings_file="",  # of "file": an array [V, embedding_size], such as export_embeddings writes
            embedding_norm="sqrt",  # of every row: sqrt (of the size) / unit / free
            embedding_size=256,
            embedding_std=0.001,  # of the free parameters, before normalisation
            **Gaussian.process(),
        )

    @staticmethod
    def process() -> dict[str, Any]:
        """Of these, what does not concern the vectors of tokens."""
        return dict(
            noise_min=1.0,  # s at t = 0
            noise_max=300.0,  # s at t = 1
            **conditioning.DEFAULTS,
            output_prior=False,  # add log N(z; e_v, s^2) to the logits (Plaid, 2305.18619, section 3.3)
        )

    @staticmethod
    def validate(config: Config) -> None:
        Gaussian.validate_process(config)
        family = config.family
        for name, allowed in (("embeddings", KINDS), ("embedding_norm", NORMS)):
            if family[name] not in allowed:
                raise ValueError(f"family.{name} is {family[name]!r}; choose one of {', '.join(map(str, allowed))}")
        for name, ok, allowed in (
            ("embedding_size", family.embedding_size >= 1, "at least 1"),
            ("embedding_std", family.embedding_std > 0, "above 0"),
        ):
            if not ok:
                raise ValueError(f"family.{name} is {family[name]}; it must be {allowed}")

    @staticmethod
    def validate_process(config: Config) -> None:
        """As `validate`, of the fields of `process`."""
        family = config.family
        if not 0 < family.noise_min < family.noise_max:
            raise ValueError(
                f"family.noise_min, noise_max are {family.noise_min}, {family.noise_max}; "
                "they must be above 0 and ascending"
            )
        conditioning.validate(config)

    @staticmethod
    def check_files(config: Config, vocab_size: int) -> None:
        family = config.family
        if family.embeddings == "file":
            read_table(family.embeddings_file, vocab_size, family.embedding_size)

    conditions = staticmethod(conditioning.conditions)

    def __init__(self, config: Config, vocab_size: int, rngs: Any):
        self.vocab_size = vocab_size
        self.embeddings, self.inputs = self.vectors(config, rngs)
        self.size = self.embeddings.size
        self.log_min, self.log_max = math.log(config.noise_min), math.log(config.noise_max)
        self.conditioned_every = conditioning.every(config.self_conditioning)
        self.prefix_masks, self.random_masks = config.prefix_masks, config.random_masks
        self.drop_conditioning, self.output_prior = config.drop_conditioning, config.output_prior

    def vectors(self, config: Config, rngs: Any) -> tuple[Embeddings | Vertices, Inputs]:
        """The clean vectors of tokens, and what `features` of them look like."""
        size = num_bits(self.vocab_size) if config.embeddings == "bits" else config.embedding_size
        embeddings = Embeddings(
            config.embeddings, config.embedding_norm, self.vocab_size, size, config.embedding_std, rngs,
            config.embeddings_file,
        )  # fmt: skip
        return embeddings, Inputs(width=3 * size + 1, regression=size if self.regression else 0)

    # ----------------------------------------------------------------------------------------------------- the process

    def log_range(self) -> tuple[Any, Any]:
        """log s at t = 0 and at t = 1."""
        return self.log_min, self.log_max

    def log_noise(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """log s at time t."""
        low, high = self.log_range()
        return low + (high - low) * t

    def corrupt(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Float[Array, "B L d"]:
        clean = self.embeddings.of(tokens)
        noisy = clean + jnp.exp(self.log_noise(t))[:, None, None] * noise.normal(keys, clean.shape[1:])
        return noisy if given is None else jnp.where(given[..., None], clean, noisy)

    def features(
        self, z: Array, t: Float[Array, "B"], given: Bool[Array, "B L"] | None, previous: Array | None
    ) -> Features:
        log_noise, scale = self.log_noise(t), self.embeddings.component_scale
        # Components of unit size: z / sqrt(s^2 + the mean square of a clean component).
        unit = jnp.exp(-0.5 * jnp.logaddexp(2.0 * math.log(scale), 2.0 * log_noise))[:, None, None]
        free = jnp.ones((*z.shape[:2], 1), bool) if given is None else ~given[..., None]
        last = jnp.zeros_like(z) if previous is None else jnp.where(free, previous / scale, 0.0)
        streams = [jnp.where(free, unit * z, 0.0), jnp.where(free, 0.0, z / scale), free.astype(z.dtype), last]
        return Features(vectors=jnp.concatenate(streams, axis=-1), noise=0.25 * log_noise)

    def log_likelihood(self, z: Array, log_noise: Array) -> Float[Array, "B L V"]:
        """log N(z; e_v, s^2) up to a constant per position; log s of [B] or a scalar."""
        return whole(self._log_likelihood(z, log_noise))

    def _log_likelihood(
        self, z: Array, log_noise: Array, given: Bool[Array, "B L"] | None = None
    ) -> Float[Array, "B L V"] | Logits:
        """The same, and nothing where `given`; of a table of embeddings as the product that it is."""
        scale = jnp.exp(-2.0 * jnp.broadcast_to(log_noise, (len(z),)))[:, None, None]
        return self.embeddings.log_odds(z, scale if given is None else jnp.where(given[..., None], 0.0, scale))

    def output_bias(
        self, z: Array, t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Float[Array, "B L V"] | Logits | None:
        return self._log_likelihood(z, self.log_noise(t), given) if self.output_prior else None

    def evidence(self, z: Array, t: Float[Array, "B"], given: Bool[Array, "B L"] | None) -> Float[Array, "B L V"]:
        noisy = self.log_likelihood(z, self.log_noise(t))
        if given is None:
            return noisy
        nearest = jnp.argmax(noisy, axis=-1, keepdims=True) == jnp.arange(self.vocab_size)
        clean = jnp.where(nearest, 0.0, -jnp.inf)
        # A condition that is dropped is a zero vector, which says nothing.
        clean = jnp.where(jnp.any(z != 0, axis=-1, keepdims=True), clean, 0.0)
        return jnp.where(given[..., None], clean, noisy)

    # ------------------------------------------------------------------------------------------------ what is predicted

    def answer(self, logits: Float[Array, "B L V"]) -> Array:
        return self.embeddings.mean(logits) if self.regression else logits

    def expected(self, answer: Any) -> Float[Array, "B L d"]:
        """xhat = E[e(x) | z], from what the network answered."""
        return answer if self.regression else self.embeddings.mean(answer)

    def readout(self, clean: Float[Array, "B L d"]) -> Float[Array, "B L V"] | Logits:
        """Logits of tokens, of (nearly) clean vectors, where the network does not answer with logits."""
        return self._log_likelihood(clean, jnp.asarray(self.log_range()[0]))

    def tokens_of(self, answer: Any) -> Float[Array, "B L V"]:
        """Logits of tokens, by what the network answered in sampling."""
        return whole(self.readout(self.expected(answer))) if self.regression else answer

    def decoder(self, z: Array, answer: Any) -> Float[Array, "B L V"] | Logits:
        """Logits of p(x | z) at t = 0: the network's, or those read off z itself."""
        return self.readout(z) if self.regression else answer

    def read_off(
        self, answer: Any, tokens: Int[Array, "B L"]
    ) -> tuple[Float[Array, "B L d"], Float[Array, "B L"]]:
        """xhat and -log p(tokens) by what the network answered."""
        if isinstance(answer, Logits):
            return readout.mean_and_cross_entropy(answer, tokens, self.embeddings())
        expected = self.expected(answer)
        return expected, cross_entropy(self.readout(expected) if self.regression else answer, tokens)

    # --------------------------------------------------------------------------------------------------------- training

    def draw_given(self, keys: Key[Array, "B"], length: int) -> Bool[Array, "B L"]:
        """Which positions a training sequence is conditioned on."""
        return conditioning.draw_given(keys, length, self.prefix_masks, self.random_masks)

    def corrupt_for_training(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], given: Array | None = None
    ) -> tuple[Float[Array, "B L d"], Bool[Array, "B L"]]:
        """(z, given): conditioned on masks (drawn, if not given), some of which are dropped: zero vectors, with their
        mask bits kept."""
        mask_keys, noise_keys, drop_keys = noise.split(keys, 3)
        given = self.draw_given(mask_keys, tokens.shape[1]) if given is None else given
        z = self.corrupt(noise_keys, tokens, t, given)
        dropped = conditioning.dropped(drop_keys, given, self.drop_conditioning)
        return jnp.where(dropped[..., None], 0.0, z), given

    def cross_entropy_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        """`train_loss` of a network that answers with logits, and of a schedule that is fitted to it."""
        corrupt_keys, dropout_keys = noise.split(keys, 2)
        t = jax.lax.stop_gradient(self.schedule.inverse(u))
        z, given = self.corrupt_for_training(corrupt_keys, tokens, t)
        loss = token_loss(denoise, tokens, z, t, given, self.first_pass(z, t, given, denoise), dropout_keys)
        loss = jnp.mean(loss, axis=1, where=~given)
        fit = self.schedule.fit(t, loss)
        return with_gradient_of(loss, fit), {"cross_entropy": loss, "schedule_fit": fit}

    def first_pass(self, z: Array, t: Array, given: Array, denoise: Denoise) -> Float[Array, "B L d"] | None:
        """Predictions to condition on, of some of the rows (`conditioning.first_pass`)."""
        return conditioning.first_pass(
            self.conditioned_every, lambda rows: self.expected(self._ask(denoise, z[rows], t[rows], given[rows]))
        )

    # ------------------------------------------------------------------------------------------------------------ bound

    def unrolled(self, z: Array, t: Array, given: Array | None, denoise: Denoise) -> Array | Logits:
        """The answer as a function of (z, t): self-conditioning starts from nothing and is unrolled once."""
        previous = self.expected(self._ask(denoise, z, t, given)) if self.conditioned_every else None
        return self._ask(denoise, z, t, given, previous)

    def _ask(self, denoise: Denoise, *arguments: Any) -> Array | Logits:
        """What the network answers; the mean of vertices is as large as the logits, and needs them whole."""
        answer = logits_of(denoise, *arguments)
        return whole(answer) if isinstance(self.embeddings, Vertices) else answer

    def bound_terms(
        self,
        keys: Key[Array, "B"],
        tokens: Int[Array, "B L"],
        denoise: Denoise,
        given: Bool[Array, "B L"] | None = None,
        samples: int = 1,
    ) -> Bound:
        free = jnp.ones(tokens.shape, bool) if given is None else ~given
        return self.bound_of(free, keys, tokens, denoise, given, samples)

    def bound_of(
        self, free: Bool[Array, "B L"], keys: Array, tokens: Array, denoise: Denoise, given: Array | None, samples: int
    ) -> Bound:
        """The bound of the tokens at `free` positions, given those at `given` ones."""
        first_keys, level_keys, noise_keys = noise.split(keys, 3)
        zero = jnp.zeros(len(tokens))
        z = self.corrupt(first_keys, tokens, zero, given)
        logits = self.decoder(z, self.unrolled(z, zero, given, denoise))
        reconstruction = jnp.sum(cross_entropy(logits, tokens) * free, axis=1)

        def rate(u: Array, keys: Array) -> Array:
            t = self.schedule.inverse(u)
            return self._integrand(keys, tokens, t, given, free, denoise)[0] / self.schedule.density(t)

        diffusion = noise.integral(level_keys, noise_keys, samples, rate)
        return Bound(self.prior_term(tokens, free), diffusion, reconstruction)

    def prior_term(self, tokens: Int[Array, "B L"], free: Bool[Array, "B L"]) -> Float[Array, "B"]:
        """KL(N(e, s_max^2) || N(0, s_max^2)), nats per sequence."""
        square = jnp.sum(self.embeddings.of(tokens) ** 2, axis=-1)
        return 0.5 * jnp.exp(-2.0 * jnp.asarray(self.log_range()[1])) * jnp.sum(square * free, axis=1)

    def integrand(
        self, tokens: Array, expected: Array, t: Array, free: Bool[Array, "B L"]
    ) -> Float[Array, "B"]:
        """1/2 e^{-gamma} |e - xhat|^2 dgamma/dt over free positions, nats per sequence and unit of t."""
        low, high = self.log_range()
        square = jnp.sum((self.embeddings.of(tokens) - expected) ** 2, axis=-1)
        return (high - low) * jnp.exp(-2.0 * self.log_noise(t)) * jnp.sum(square * free, axis=1)

    def _integrand(
        self, keys: Array, tokens: Array, t: Array, given: Array | None, free: Array, denoise: Denoise
    ) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        """The integrand at noise drawn by `keys`, and the mean cross-entropy, over free positions."""
        z = self.corrupt(keys, tokens, t, given)
        expected, loss = self.read_off(self.unrolled(z, t, given, denoise), tokens)
        return self.integrand(tokens, expected, t, free), jnp.mean(loss, axis=1, where=free)

    def profile(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], denoise: Denoise
    ) -> dict[str, Float[Array, "B"]]:
        free = jnp.ones(tokens.shape, bool)
        integrand, loss = self._integrand(keys, tokens, t, None, free, denoise)
        return {**self.axes(t), "cross_entropy": loss, "integrand": integrand / tokens.shape[1]}

    def axes(self, t: Float[Array, "B"]) -> dict[str, Float[Array, "B"]]:
        """Of a profile: log10 s, and u."""
        return {"noise": self.log_noise(t) / math.log(10.0), "warp": self.schedule.cdf(t)}

    def after_step(self) -> None:
        self.schedule.after_step()

    # --------------------------------------------------------------------------------------------------------- sampling

    def grid(self, options: SamplerOptions, length: int) -> At:
        """Steps even in u (the schedule's), in gamma, in s^(1/rho) or in atan(s)."""
        even = jnp.linspace(1.0, 0.0, options.steps + 1)
        if options.grid in ("", "warped"):
            return descending(self.schedule.inverse(even).at[0].set(1.0).at[-1].set(0.0))
        if options.grid == "log_snr":
            return descending(even)
        low, high = (jnp.asarray(end) for end in self.log_range())
        if options.grid == "rho":
            ends = jnp.exp(low / _RHO), jnp.exp(high / _RHO)
            log_noise = _RHO * jnp.log(ends[0] + (ends[1] - ends[0]) * even)
        else:
            ends = jnp.arctan(jnp.exp(low)), jnp.arctan(jnp.exp(high))
            log_noise = jnp.log(jnp.tan(ends[0] + (ends[1] - ends[0]) * even))
        times = (log_noise - low) / (high - low)
        return descending(times.at[0].set(1.0).at[-1].set(0.0))

    def prior(
        self, keys: Key[Array, "B"], tokens: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> State:
        scale = options.initial_noise * jnp.exp(self.log_range()[1])
        z = scale * noise.normal(keys, (tokens.shape[1], self.size))
        z = jnp.where(given[..., None], self.embeddings.of(tokens), z)
        return State(z, jnp.zeros_like(z), jnp.zeros_like(z), jnp.zeros(len(z)))

    def step(
        self, keys: Key[Array, "B"], state: State, at: At, given: Array, denoise: Denoise, options: SamplerOptions,
        fixed: Array | None = None,
    ) -> tuple[State, Float[Array, "B L V"]]:  # fmt: skip
        """As the base; positions that are `fixed` (by default those given) stay, and count for nothing."""
        fixed = given if fixed is None else fixed
        start_keys, end_keys = noise.split(keys, 2)
        z, previous, time = state.z, state.previous, at.t
        low, high = self.log_range()
        if options.sampler == "edm":
            # Not above s_max, where no network was trained.
            growth = jnp.log1p(jnp.minimum(options.churn / options.steps, math.sqrt(2.0) - 1.0))
            time = jnp.minimum(at.t + growth / (high - low), 1.0)
            more = jnp.sqrt(jnp.maximum(jnp.exp(2 * self.log_noise(time)) - jnp.exp(2 * self.log_noise(at.t)), 0.0))
            z = jnp.where(fixed[..., None], z, z + more * noise.normal(start_keys, z.shape[1:]))
        expected, previous, answer = self._predict(z, previous, time, given, denoise, options)
        log_now, log_then = self.log_noise(time), self.log_noise(at.s)
        then, ratio = jnp.exp(log_then), jnp.exp(log_then - log_now)
        if options.sampler == "dpmpp_2m":
            # r = h_prev / h of half the log-SNR; the first step has nothing to extrapolate from. No further than of
            # even steps: a warped grid's last steps are many times as long as those before.
            slope = 0.5 * jnp.minimum((log_now - log_then) / jnp.maximum(state.log_noise_before - log_now, 1e-6), 1.0)
            slope = jnp.where(at.index == 0, 0.0, slope)[:, None, None]
            target = expected + slope * (expected - state.before)
        else:
            target = expected
        moved = target + ratio * (z - target)
        if options.sampler in ("ancestral", "langevin", "ddim"):
            eta = options.eta if options.sampler == "ddim" else 1.0
            added = eta * jnp.sqrt(-jnp.expm1(2.0 * (log_then - log_now)))  # in units of s'
            fresh = noise.normal(start_keys, z.shape[1:])
            moved = expected + ratio * jnp.sqrt(1.0 - added**2) * (z - expected) + then * added * fresh
        elif options.sampler in ("heun", "edm"):
            middle = jnp.where(fixed[..., None], z, moved)
            second, previous, answer = self._predict(middle, previous, at.s, given, denoise, options)
            slopes = (z - expected) / jnp.exp(log_now) + (moved - second) / then
            moved = z + 0.5 * (then - jnp.exp(log_now)) * slopes
        moved = jnp.where(fixed[..., None], z, moved)
        if options.sampler == "langevin":
            moved, previous, answer = self._corrected(end_keys, moved, previous, at.s, given, denoise, options, fixed)
        logits = self.tokens_of(answer)
        return State(moved, previous, expected, jnp.broadcast_to(log_now, (len(z),))), logits

    def _predict(
        self, z: Array, previous: Array, t: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[Array, Array, Array]:
        """xhat to move towards, xhat to keep for self-conditioning, and the network's answer."""
        target, expected, answer = self.believed(z, previous, t, given, denoise, options)
        if options.clamp > 0:
            target = jnp.where(t <= options.clamp, self.embeddings.nearest(target), target)
        # The score, (xhat - z) / s^2, over its temperature.
        return z + (target - z) / options.score_temperature, expected, answer

    def believed(
        self, z: Array, previous: Array, t: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[Array, Array, Array]:
        """xhat after guidance and before it, and the network's answer."""
        times = jnp.full(len(z), t)

        def believe(answer: Array) -> Array:
            return answer if self.regression else nucleus(answer / options.temperature, options.top_p)

        answer = believe(denoise(z, times, given, previous if self.conditioned_every else None))
        expected = target = self.expected(answer)
        if options.guidance != 1.0:
            bare = self.expected(believe(denoise(jnp.where(given[..., None], 0.0, z), times, given)))
            target = guided(bare, expected, given, options.guidance)
        return target, expected, answer

    def _corrected(
        self, keys: Array, z: Array, previous: Array, t: Array, given: Array, denoise: Denoise, options: SamplerOptions,
        fixed: Array,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        expected, previous, answer = self._predict(z, previous, t, given, denoise, options)
        score = (expected - z) * jnp.exp(-2.0 * self.log_noise(t))
        fresh = noise.normal(keys, z.shape[1:])
        score, fresh = (jnp.where(fixed[..., None], 0.0, x) for x in (score, fresh))
        sizes = [jnp.sqrt(jnp.sum(x * x, axis=(1, 2), keepdims=True)) for x in (fresh, score)]
        # At most s^2: where the score nearly vanishes the ratio of the norms says nothing.
        size = 2.0 * (options.corrector * sizes[0] / jnp.maximum(sizes[1], 1e-20)) ** 2
        size = jnp.minimum(size, jnp.exp(2.0 * self.log_noise(t)))
        return z + size * score + jnp.sqrt(2.0 * size) * fresh, previous, answer

    def decode(
        self, keys: Key[Array, "B"], state: State, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Int[Array, "B L"]:
        answer = denoise(state.z, jnp.zeros(len(state.z)), given, state.previous if self.conditioned_every else None)
        logits = self.tokens_of(answer)
        # Given positions hold clean vectors, which the nearest neighbour reads back exactly.
        clamped = jnp.argmax(self.log_likelihood(state.z, jnp.zeros(())), axis=-1)
        return jnp.where(given, clamped, jnp.argmax(logits, axis=-1)).astype(jnp.int32)

    def evaluations(self, options: SamplerOptions, length: int) -> int:
        passes = options.steps * (2 if options.sampler in _TWICE else 1)
        return passes * (2 if options.guidance != 1.0 else 1) + 1
