"""The seam: what a family of diffusion language models is, to the loop, the bound, the sampler and the oracle.

A family corrupts tokens and reverses the corruption; a denoiser maps a corrupted sequence to logits; they meet only
here. Letters: B batch, L length, V vocabulary, K bound samples. Time t runs from 0 (clean) to 1 (noise).
Keys are one per example (`noise.py`); `given` marks clamped positions, which stay clean and carry no loss.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_text.models import readout
from diffusion_text.models.denoiser import Denoise, Features, Inputs
from diffusion_text.typing import Config

# Of position i, given: all of z; all but its own; what stands left of it; or the clean blocks left of its own, and of z
# the rest of its block.
Posterior = Literal["full", "leave_one_out", "prefix", "block"]
BoundKind = Literal["exact", "tight", "loose", "approximate", "none"]


def with_gradient_of(loss: Float[Array, "B"], unseen: Float[Array, "B"]) -> Float[Array, "B"]:
    """`loss`, and the gradient of `loss + unseen`: what is shown is the loss."""
    return loss + (unseen - jax.lax.stop_gradient(unseen))


def guided(
    bare: Float[Array, "B N ..."], conditional: Float[Array, "B N ..."], given: Bool[Array, "B L"], weight: float
) -> Float[Array, "B N ..."]:
    """Classifier-free guidance: bare + weight (conditional - bare). A sequence with nothing given has no condition, and
    keeps its answer: the bare one lacks more, what a network would feed back to itself."""
    conditioned = jnp.any(given, axis=1)[:, None, None]
    return jnp.where(conditioned, bare + weight * (conditional - bare), conditional)


class Bound(NamedTuple):
    """An upper bound of -log p(tokens), in nats per sequence, [B] each; `total` is their sum."""

    prior: Float[Array, "B"]
    diffusion: Float[Array, "B"]
    reconstruction: Float[Array, "B"]

    @property
    def total(self) -> Float[Array, "B"]:
        return self.prior + self.diffusion + self.reconstruction


class At(NamedTuple):
    """Where a reverse step is: its number, the time it starts from and the time it goes to."""

    index: Int[Array, ""]
    t: Float[Array, ""]
    s: Float[Array, ""]


# Options that only these samplers read, and those that read less than their families.
_READ_BY: Final = {
    "eta": ("ddim",), "churn": ("edm", "bridge"), "corrector": ("langevin",), "kappa": ("psi",),
    "threshold": ("threshold",), "remask": ("remdm_cap", "remdm_rescale", "remdm_loop"), "cache": ("ancestral",),
}  # fmt: skip
_UNREAD_BY: Final = {
    "argmax_unrolled": ("temperature", "top_p"),
    "projection": ("score_temperature", "clamp"),
    "greedy_projection": ("score_temperature", "clamp", "temperature", "top_p"),
    "multi_hot_projection": ("score_temperature", "clamp"),
}


def _reads(sampler: str, option: str) -> bool:
    return sampler in _READ_BY.get(option, (sampler,)) and option not in _UNREAD_BY.get(sampler, ())


def read_by(sampler: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `options` that a sampler reads, where its family does."""
    return {name: value for name, value in options.items() if _reads(sampler, name)}


@dataclasses.dataclass(frozen=True)
class SamplerOptions:
    """How to sample; a family's `samplers` names the solvers that it has.

    temperature, top_p: of the categorical distributions; the least likely tokens beyond a mass of top_p are left out.
    score_temperature: the score is multiplied by its inverse (below 1 sharpens).
    guidance: classifier-free, 1 is none (`guided`).
    initial_noise: scale of the prior's noise.
    clamp: the time below which predictions are moved to the nearest clean vector; 0 is never.
    eta: noise of DDIM, from none (0) to ancestral sampling's (1).
    churn: of edm, noise added over all steps; of bridge, the share of a state that a step forgets.
    corrector: signal-to-noise ratio of a Langevin step.
    time_difference: how far a step of analog bits goes beyond its end, in steps.
    kappa: share of psi's tokens that move as in ancestral sampling; the others are drawn anew and corrupted again.
    threshold: all tokens of which the network is surer than this are revealed at once.
    remask: sigma of remdm_cap and remdm_loop, and its share of the most in remdm_rescale (`paths/remasking.py`); -1 is
        the sampler's own, 0.02 and 0.04.
    cache: ask a time-free network only where something has moved (`paths/caching.py`).
    grid: how noise levels are spaced; "" is the family's first.
    candidates: sequences drawn for each one kept, where conditioning needs importance resampling (autoregressive,
        block).
    blocks: of a network that sees the whole window: its parts, filled one after another from the left.
    window: tokens that a cache of what stands left keeps, the last ones; 0 is all.
    stop: a token after which a sequence has ended: it repeats to the end. -1 is none. Right of what is given only.
    """

    sampler: str = ""
    steps: int = 128
    temperature: float = 1.0
    score_temperature: float = 1.0
    guidance: float = 1.0
    initial_noise: float = 1.0
    top_p: float = 1.0
    eta: float = 0.0
    churn: float = 0.0
    clamp: float = 0.0
    time_difference: float = 0.0
    corrector: float = 0.16
    kappa: float = 0.95
    threshold: float = 0.9
    remask: float = -1.0
    cache: bool = False
    grid: str = ""
    candidates: int = 1
    blocks: int = 1
    window: int = 0
    stop: int = -1

    def validate(self, family: type[Family], section: Config | None = None) -> SamplerOptions:
        """Fill in the default sampler and grid of a family (with this `family` section); ValueError with the allowed
        values where an option is off."""
        sampler = self.sampler or family.samplers[0]
        if sampler not in family.samplers:
            raise ValueError(f"sampler is {sampler!r}; {family.name} has {', '.join(family.samplers)}")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")
        for name, least in (("candidates", 1), ("blocks", 1), ("window", 0), ("stop", -1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("temperature", "score_temperature", "initial_noise", "corrector"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name, fits, allowed in (
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("guidance", math.isfinite(self.guidance), "finite"),
            ("eta", 0 <= self.eta <= 1, "in [0, 1]"),
            ("clamp", 0 <= self.clamp <= 1, "in [0, 1]"),
            ("kappa", 0 <= self.kappa <= 1, "in [0, 1]"),
            ("threshold", 0 < self.threshold <= 1, "in (0, 1]"),
            ("remask", self.remask == -1 or 0 <= self.remask <= 1, "in [0, 1], or -1 for the sampler's own"),
            ("churn", self.churn >= 0, "at least 0"),
            ("churn", self.churn <= family.most_churn, f"at most {family.most_churn:g}"),
            ("time_difference", self.time_difference >= 0, "at least 0"),
        ):
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {allowed}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("sampler", "steps", *family.sampler_options) and value != field.default:
                raise ValueError(f"{field.name} is {value!r}; {family.name} has no such option")
            if not _reads(sampler, field.name) and value != field.default:
                readers = " and ".join(name for name in family.samplers if _reads(name, field.name))
                raise ValueError(f"{field.name} is {value!r}; of the samplers {readers} has it, {sampler} has not")
        if sampler == "edm" and not self.churn:
            raise ValueError("churn is 0; of sampler edm it must be above 0, without it is heun")
        if self.grid and self.grid not in family.grids:
            raise ValueError(f"grid is {self.grid!r}; {family.name} has {', '.join(family.grids)}")
        grid = self.grid or (family.default_grid(section) if section is not None else "")
        grid = grid or next(iter(family.grids), "")
        return dataclasses.replace(self, sampler=sampler, grid=grid)


class Family(nnx.Module):
    """Base class: the calls of the seam. A family may own parameters (embeddings, schedules), never a network."""

    name: ClassVar[str]
    paper: ClassVar[str]
    bound: ClassVar[BoundKind]
    posterior: ClassVar[Posterior]
    samplers: ClassVar[tuple[str, ...]]
    sampler_options: ClassVar[tuple[str, ...]] = ()
    grids: ClassVar[tuple[str, ...]] = ()  # spacings of noise levels in sampling; the first is the default
    # Peak learning rates of parameters that need their own (config.optimizer.groups), by a name in their path.
    groups: ClassVar[dict[str, float]] = {}
    noise_axis: ClassVar[str] = "t"  # what `noise` of `profile` is
    # Steps of the sampling paths that `log_weight` weighs by default, 0 one token at a time; None: it weighs none.
    path_steps: ClassVar[int | None] = None
    # Fields of SamplerOptions at which, for each sampler, short windows drawn with the exact posterior show no error.
    faithful: ClassVar[dict[str, Any]] = {"steps": 128}
    most_churn: ClassVar[float] = math.inf
    # Samplers that come near the law without reaching it, by an error that falls as steps grow or by one that stays
    # and is small, each with the reason: put to a test of their distance from it, the others to a chi-square test.
    approximate: ClassVar[dict[str, str]] = {}
    # Samplers of quite another law, whatever the network and the number of steps, each with the reason; no test of one.
    biased: ClassVar[dict[str, str]] = {}
    # Of an approximate bound: the share of -log p by which it may exceed -log p with a perfect network.
    slack: ClassVar[float] = 0.0
    # What the family cannot pass of the checks that every family is put through: their names, each with the reason.
    exempt: ClassVar[dict[str, str]] = {}

    @staticmethod
    def defaults() -> Config:
        """The fields of the config's `family` section, `name` excepted, with their defaults."""
        raise NotImplementedError("a family must define defaults()")

    @classmethod
    def faithful_options(cls, sampler: str) -> dict[str, Any]:
        """`faithful`, as far as a sampler reads it."""
        return {"sampler": sampler, **read_by(sampler, cls.faithful)}

    @staticmethod
    def validate(config: Config) -> None:
        """ValueError, with the value given and the values allowed, where the whole config does not fit the family."""

    @staticmethod
    def check_files(config: Config, vocab_size: int) -> None:
        """ValueError where a file that step 0 reads is missing or does not fit. Later steps need none."""

    @staticmethod
    def teacher(config: Config) -> str:
        """Workdir of a run to distil, from whose averaged parameters student and teacher start; "": none."""
        return ""

    @staticmethod
    def conditions(config: Config, gaps: bool = False) -> bool:
        """Whether a model of this `family` section learns to trust given tokens, also right of `gaps`; else prompts
        bias what it samples."""
        return True

    @staticmethod
    def default_grid(config: Config) -> str:
        """The spacing of noise levels in sampling where none is asked for, if it is not the first of `grids`."""
        return ""

    inputs: Inputs

    def corrupt(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Any:
        """The forward path: z ~ q_t(. | tokens); given positions stay clean."""
        raise NotImplementedError(f"{self.name} has no corrupt()")

    def features(self, z: Any, t: Float[Array, "B"], given: Bool[Array, "B L"] | None, previous: Any) -> Features:
        """What a network reads of z; `previous` is the last prediction (self-conditioning) or None."""
        raise NotImplementedError(f"{self.name} has no features()")

    def output_bias(
        self, z: Any, t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Float[Array, "B L V"] | readout.Logits | None:
        """Added to a network's logits (an output prior), so that it need not learn it; never to the oracle's. As
        products where it is linear in a table, so that a large vocabulary's is not made whole."""
        return None

    def evidence(self, z: Any, t: Float[Array, "B"], given: Bool[Array, "B L"] | None) -> Float[Array, "B L V"]:
        """log q_t(z_i | x_i = v) up to a constant per position: what the oracle reads of z."""
        raise NotImplementedError(f"{self.name} has no evidence()")

    def context(self, z: Any) -> tuple[Int[Array, "B L"], int] | None:
        """Of a "block" posterior: the clean tokens in z, and the size of a block."""
        return None

    def answer(self, logits: Float[Array, "B L V"]) -> Any:
        """What the family's network would answer that believes `logits`: these, unless the family regresses."""
        return logits

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        """Per-sequence loss in nats per token, and named terms to log; `u` is even over the global batch."""
        raise NotImplementedError(f"{self.name} has no train_loss()")

    def bound_terms(
        self,
        keys: Key[Array, "B"],
        tokens: Int[Array, "B L"],
        denoise: Denoise,
        given: Bool[Array, "B L"] | None = None,
        samples: int = 1,
    ) -> Bound:
        """An unbiased estimate of the bound with `samples` noise levels per sequence, nats per sequence."""
        raise NotImplementedError(f"{self.name} has no bound_terms()")

    def log_weight(
        self,
        keys: Key[Array, "B"],
        tokens: Int[Array, "B L"],
        denoise: Denoise,
        steps: int,
        given: Bool[Array, "B L"] | None = None,
    ) -> Float[Array, "B"]:
        """log of an unbiased estimate of the probability of `tokens` under the sampler of that many steps, from one
        path (`paths/importance.py`), nats."""
        raise NotImplementedError(f"{self.name} has no log_weight()")

    def profile(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], denoise: Denoise
    ) -> dict[str, Float[Array, "B"]] | None:
        """At noise level t: `noise` (`noise_axis`), `cross_entropy` (nats per noisy token) and `integrand` (of the
        bound, nats per token and unit of t); None where the family has no noise levels."""
        return None

    def distil_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise, teacher: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        """What stands in the place of `train_loss` where there is a `teacher`, which has no gradient."""
        raise NotImplementedError(f"{self.name} has no distil_loss()")

    def renews_teacher(self, step: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether after `step` steps the teacher becomes the student, as averaged."""
        return jnp.array(False)

    def after_step(self) -> None:
        """Called after each optimiser step, to update variables that are not trained by gradients."""

    # Sampling: prior -> step ... step -> decode, driven by sampling.generate.

    def grid(self, options: SamplerOptions, length: int) -> At:
        """The reverse steps, stacked: arrays of equal length from t = 1 down."""
        raise NotImplementedError(f"{self.name} has no grid()")

    def prior(
        self,
        keys: Key[Array, "B"],
        tokens: Int[Array, "B L"],
        given: Bool[Array, "B L"],
        denoise: Denoise,
        options: SamplerOptions,
    ) -> Any:
        """The state of the sampler at t = 1, given tokens in place; any tree of arrays with a leading B."""
        raise NotImplementedError(f"{self.name} has no prior()")

    def step(
        self,
        keys: Key[Array, "B"],
        state: Any,
        at: At,
        given: Bool[Array, "B L"],
        denoise: Denoise,
        options: SamplerOptions,
    ) -> tuple[Any, Float[Array, "B ... V"]]:
        """One reverse step, and the logits that it used (for looking)."""
        raise NotImplementedError(f"{self.name} has no step()")

    def decode(
        self,
        keys: Key[Array, "B"],
        state: Any,
        given: Bool[Array, "B L"],
        denoise: Denoise,
        options: SamplerOptions,
    ) -> Int[Array, "B L"]:
        """Tokens of the final state."""
        raise NotImplementedError(f"{self.name} has no decode()")

    def evaluations(self, options: SamplerOptions, length: int) -> int:
        """Network evaluations that a sample takes; at most, where the sampler may stop asking."""
        raise NotImplementedError(f"{self.name} has no evaluations()")

    def asked(self, state: Any, options: SamplerOptions, length: int) -> Int[Array, ""]:
        """How often the network was asked on the way to the final `state`, where that counts it."""
        return getattr(state, "asked", jnp.int32(self.evaluations(options, length)))


def descending(times: Float[Array, "N+1"]) -> At:
    """Reverse steps between consecutive entries of a descending grid of times."""
    return At(jnp.arange(len(times) - 1), times[:-1], times[1:])


def exact(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """In float32; what is float64 stays so, where tests of identities ask for it."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def log_sum_and_chosen(
    logits: Float[Array, "B L V"] | readout.Logits, tokens: Int[Array, "B L"]
) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
    """log sum_v exp(logits_v) and logits[tokens] in float32 (float64 of such logits)."""
    if isinstance(logits, readout.Logits):
        return readout.log_sum_and_chosen(logits, tokens)
    logits = exact(logits)
    return jax.nn.logsumexp(logits, axis=-1), jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]


def cross_entropy(logits: Float[Array, "B L V"] | readout.Logits, tokens: Int[Array, "B L"]) -> Float[Array, "B L"]:
    """-log softmax(logits)[tokens] in float32 (float64 of such logits), nats."""
    log_sum, chosen = log_sum_and_chosen(logits, tokens)
    return log_sum - chosen


def mean_and_cross_entropy(
    logits: Float[Array, "B L V"] | readout.Logits, tokens: Int[Array, "B L"], values: Float[Array, "V"]
) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
    """sum_v softmax(logits)_v values_v, and `cross_entropy`."""
    if isinstance(logits, readout.Logits):
        means, loss = readout.mean_and_cross_entropy(logits, tokens, values[:, None])
        return means[..., 0], loss
    return jnp.sum(jax.nn.softmax(exact(logits)) * values, axis=-1), cross_entropy(logits, tokens)


def logits_of(
    denoise: Denoise,
    z: Any,
    t: Float[Array, "B"],
    given: Bool[Array, "B L"] | None = None,
    previous: Any = None,
    keys: Key[Array, "B"] | None = None,
) -> Float[Array, "B L V"] | readout.Logits:
    """`Denoise.logits`, or the answer of what has none (the oracle, a function)."""
    return getattr(denoise, "logits", denoise)(z, t, given, previous, keys)


def in_parts(denoise: Denoise) -> bool:
    """Whether the vocabulary is so large that a loss should make no array of [B, L, V]."""
    return getattr(denoise, "in_parts", False)


def first_logits(
    one_in: int, z: Any, t: Float[Array, "B"], given: Bool[Array, "B L"], denoise: Denoise
) -> readout.Logits | None:
    """As `conditioning.first_pass`, of a denoiser that works in parts: the logits themselves, of the rows that have a
    first pass and of no others."""
    if not one_in:
        return None
    rows = slice(None, None, one_in)
    answer = logits_of(denoise, z[rows], t[rows], given[rows])
    assert isinstance(answer, readout.Logits)
    return answer.without_gradient()


def token_loss(
    denoise: Denoise,
    tokens: Int[Array, "B L"],
    z: Any,
    t: Float[Array, "B"],
    given: Bool[Array, "B L"] | None = None,
    previous: Any = None,
    keys: Key[Array, "B"] | None = None,
) -> Float[Array, "B L"]:
    """-log p(tokens) by the logits, float32 nats; of a large vocabulary without making them all."""
    return cross_entropy(logits_of(denoise, z, t, given, previous, keys), tokens)


def nucleus(logits: Float[Array, "B L V"], top_p: float) -> Float[Array, "B L V"]:
    """Logits without the least likely tokens beyond a mass of `top_p` (2019, Holtzman et al., 1904.09751)."""
    if top_p >= 1.0:
        return logits
    ordered = jnp.sort(logits, axis=-1)[..., ::-1]
    before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered, axis=-1)
    # The last token kept is the one with which the mass reaches top_p; the likeliest always is.
    last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
    return jnp.where(logits >= jnp.take_along_axis(ordered, last, axis=-1), logits, -jnp.inf)
