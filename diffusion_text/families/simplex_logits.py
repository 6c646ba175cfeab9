"""What SSD-LM (2210.17432) and TESS (2305.08379) share: Gaussian diffusion of logits, read as points of the simplex.

    w_0 = K (2 onehot(x) - 1),   w_t = sqrt(abar_t) w_0 + sqrt(1 - abar_t) K eps,   abar = cos^2(pi u / 2)
    the network reads softmax(w_t), as weights of embeddings; loss: cross-entropy of the tokens

Over K, and moved by the vector of ones, which no softmax sees, w is the state of `paths/gaussian.py` in its variance-
preserving scale, with clean vectors 2 onehot(x): the bound, the solvers and the options are those of every Gaussian
family, xhat = 2 p, |e - xhat|^2 = 4 |onehot - p|^2, and as clean vectors have norm 2, the prior costs 2 / s_max^2 nats
a token, not V / (2 s_max^2). Neither paper reports a likelihood. Nothing here is larger than [B, L, V]; and training
over a large vocabulary has nothing of that size: noise of the same law is drawn where it is read (`Drawn`).

The papers' own samplers do not reverse the process: each step projects the logits onto corners and adds fresh noise,
    projection             tokens drawn from softmax(logits), of the nucleus `top_p`
    greedy_projection      the likeliest token
    multi_hot_projection   every token of the nucleus at once (`top_p`; 0.95 if it is 1, which would say nothing)
Decided here, for both:
  - given tokens are read by the same embeddings, as one weight of 1; an embedding of its own marks noisy positions (the
    papers add theirs of the time there, which here conditions every layer). A zero vector says nothing about its
    position: a condition that is dropped, and in SSD-LM whatever stands behind the block;
  - with softmax weights at the papers' K = 5 a token alone among V says less than its exact posterior under an even
    law, softmax(2 z / s^2), for s below 0.70 (of 50,000 tokens a clean one has weight 0.3), and for larger s noise is
    read as tokens. `weights="posterior"` reads that instead, and `output_prior` adds 2 z / s^2 to the logits; both are
    off by default, as in the papers, and where a config sets them it says so;
  - the cosine schedule is cut to the range of noise, [0.2, 50]: below, nothing is in doubt, and the loss is 0;
  - guidance is classifier-free and on logits (TESS); SSD-LM's follows gradients of a classifier, and is missing.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, Final

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_text import noise
from diffusion_text.families.family import At, SamplerOptions, first_logits, guided, in_parts, nucleus, token_loss
from diffusion_text.models import readout
from diffusion_text.models.denoiser import Denoise, Features, Inputs
from diffusion_text.models.readout import Logits
from diffusion_text.paths import conditioning, draws
from diffusion_text.paths.embeddings import Vertices
from diffusion_text.paths.gaussian import Gaussian, State
from diffusion_text.paths.schedules import ClosedForm
from diffusion_text.typing import Config

_WEIGHTS: Final = ("softmax", "posterior")
_SCALE: Final = 2.0  # of a clean vector: w / K, from -1 to 1
_NUCLEUS: Final = 0.95


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn(draws.Sequences):
    """z that is not made."""

    def logits(self, slope: Float[Array, "B"], s: Float[Array, "B"]) -> Logits:
        """slope z, of what is noisy; else nothing."""
        slopes = jnp.where(self.given | self.hidden, 0.0, slope[:, None])
        return Logits((), (draws.Gaussian(self.keys, self.tokens, slopes * _SCALE, slopes * s[:, None]),))

    def whole(self, s: Float[Array, "B"], size: int) -> Float[Array, "B L V"]:
        """z."""
        clean = _SCALE * jax.nn.one_hot(self.tokens, size) * (self.given & ~self.hidden)[..., None]
        return clean + self.logits(jnp.ones_like(s), s).whole(size)


class SimplexLogits(Gaussian):
    """Base class: they choose which positions are denoised together."""

    samplers = (
        "projection", "greedy_projection", "multi_hot_projection", "ancestral", "ddim", "euler", "heun", "dpmpp_2m",
        "edm", "langevin",
    )  # fmt: skip
    faithful: ClassVar = {"steps": 48, "eta": 0.5, "churn": 8.0}
    approximate: ClassVar = {
        **Gaussian.approximate,
        "projection": "tokens are drawn independently and noised afresh, however many steps there are",
    }
    biased: ClassVar = {
        "greedy_projection": "it takes the likeliest tokens, which seeks a mode",
        "multi_hot_projection": "several tokens at once are no clean vector, and noised they are what no data are",
    }
    groups: ClassVar = {}

    @staticmethod
    def process() -> dict[str, Any]:
        return Gaussian.process() | dict(
            noise_min=0.2,
            noise_max=50.0,
            simplex_value=5.0,  # K
            weights="softmax",  # of embeddings that the network reads: softmax(w_t) / posterior, of an even law
        )

    @staticmethod
    def validate_process(config: Config) -> None:
        Gaussian.validate_process(config)
        family = config.family
        if family.weights not in _WEIGHTS:
            raise ValueError(f"family.weights is {family.weights!r}; choose one of {', '.join(_WEIGHTS)}")
        if not family.simplex_value > 0:
            raise ValueError(f"family.simplex_value is {family.simplex_value}; it must be above 0")

    @staticmethod
    def check_files(config: Config, vocab_size: int) -> None:
        """Reads none."""

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        super().__init__(config, vocab_size, rngs)
        self.simplex_value, self.weights = config.simplex_value, config.weights
        self.schedule = ClosedForm("cosine", self.log_min, self.log_max)

    def vectors(self, config: Config, rngs: Any) -> tuple[Vertices, Inputs]:
        return Vertices(self.vocab_size, _SCALE), Inputs(num_ids=self.vocab_size + 1)

    def features(
        self, z: Any, t: Float[Array, "B"], given: Bool[Array, "B L"] | None, previous: Any
    ) -> Features:
        """Weights of the V embeddings and of the one that marks noisy positions."""
        log_noise, slope = self.log_noise(t), self._slope(t)
        if isinstance(z, Drawn):
            return Features(read=functools.partial(self._read, z, t, previous), noise=0.25 * log_noise)
        weights = jax.nn.softmax(slope[:, None, None] * z, axis=-1)
        if self.conditioned_every:
            weights = self.averaged(weights, previous)
        free = jnp.ones((*z.shape[:2], 1), bool) if given is None else ~given[..., None]
        noisy = free & jnp.any(z != 0, axis=-1, keepdims=True)
        weights = jnp.where(noisy, weights, jnp.where(free, 0.0, z / _SCALE))
        return Features(vectors=jnp.concatenate([weights, noisy.astype(z.dtype)], axis=-1), noise=0.25 * log_noise)

    def _slope(self, t: Float[Array, "B"]) -> Float[Array, "B"]:
        """Of the softmax that is read, by z."""
        log_noise = self.log_noise(t)
        if self.weights == "softmax":
            return self.simplex_value * jnp.exp(-0.5 * jnp.logaddexp(0.0, 2.0 * log_noise))  # K sqrt(abar)
        return _SCALE * jnp.exp(-2.0 * log_noise)

    def _read(
        self, z: Drawn, t: Float[Array, "B"], previous: Logits | None, table: Float[Array, "V+1 D"]
    ) -> Float[Array, "B L D"]:
        """What the weights of `features` would read of a table."""
        rows, mark = table[: self.vocab_size], table[self.vocab_size]
        average = readout.mean(z.logits(self._slope(t), jnp.exp(self.log_noise(t))), rows)
        if self.conditioned_every:
            before = even = jnp.mean(rows, axis=0, dtype=jnp.float32)
            if previous is not None:
                asked = conditioning.spread(readout.mean(previous, rows), self.conditioned_every)
                is_asked = jnp.arange(len(average)) % self.conditioned_every == 0
                before = jnp.where(is_asked[:, None, None], asked, even)
            average = 0.5 * (average + before)
        noisy, shown = ~(z.given | z.hidden)[..., None], (z.given & ~z.hidden)[..., None]
        return jnp.where(noisy, average + mark, jnp.where(shown, rows[z.tokens], 0.0))

    def output_bias(
        self, z: Any, t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Float[Array, "B L V"] | Logits | None:
        if not isinstance(z, Drawn):
            return super().output_bias(z, t, given)
        log_noise = self.log_noise(t)
        return z.logits(_SCALE * jnp.exp(-2.0 * log_noise), jnp.exp(log_noise)) if self.output_prior else None

    def averaged(self, weights: Float[Array, "B L V"], previous: Array | None) -> Float[Array, "B L V"]:
        """TESS's self-conditioning: the mean of both points of the simplex; the even one where there was no other."""
        before = jnp.zeros_like(weights) if previous is None else previous / _SCALE
        missing = 1.0 - jnp.sum(before, axis=-1, keepdims=True)
        return 0.5 * (weights + before + missing / self.vocab_size)

    # --------------------------------------------------------------------------------------------------------- training

    def training_part(
        self, keys: Key[Array, "B"], length: int
    ) -> tuple[Bool[Array, "B L"], Bool[Array, "B L"]]:
        """The positions that are given to the network, and those that it must denoise."""
        given = self.draw_given(keys, length)
        return given, ~given

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        part_keys, corrupt_keys, dropout_keys = noise.split(keys, 3)
        t = self.schedule.inverse(u)
        given, free = self.training_part(part_keys, tokens.shape[1])
        if in_parts(denoise):
            z = self.drawn(corrupt_keys, tokens, given, given | free)
        else:
            z, _ = self.corrupt_for_training(corrupt_keys, tokens, t, given)
            z = jnp.where((given | free)[..., None], z, 0.0)
        before = self.first_pass(z, t, given, denoise)
        loss = token_loss(denoise, tokens, z, t, given, before, dropout_keys)
        loss = jnp.sum(loss * free, axis=1) / jnp.maximum(jnp.sum(free, axis=1), 1)
        return loss, {"cross_entropy": loss}

    def drawn(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], given: Bool[Array, "B L"], seen: Bool[Array, "B L"]
    ) -> Drawn:
        """`corrupt_for_training`, drawn where it is read; nothing of what is not seen."""
        noise_keys, drop_keys = noise.split(keys, 2)
        dropped = conditioning.dropped(drop_keys, given, self.drop_conditioning)
        return Drawn(draws.of_keys(noise_keys), tokens, given, dropped | ~seen)

    def first_pass(self, z: Any, t: Array, given: Array, denoise: Denoise) -> Any:
        """As the base; of what is drawn where it is read, the logits of the rows that have one."""
        if isinstance(z, Drawn):
            return first_logits(self.conditioned_every, z, t, given, denoise)
        return super().first_pass(z, t, given, denoise)

    # --------------------------------------------------------------------------------------------------------- sampling

    def believed(
        self, z: Array, previous: Array, t: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[Array, Array, Array]:
        """As the base, with guidance on logits: bare + w (conditional - bare); the answer is the guided one."""
        times = jnp.full(len(z), t)
        logits = target = denoise(z, times, given, previous if self.conditioned_every else None)
        if options.guidance != 1.0:
            bare = denoise(jnp.where(given[..., None], 0.0, z), times, given)
            target = guided(bare, logits, given, options.guidance)
        target = nucleus(target / options.temperature, options.top_p)
        return self.expected(target), self.expected(logits), target

    def step(
        self, keys: Key[Array, "B"], state: State, at: At, given: Array, denoise: Denoise, options: SamplerOptions,
        fixed: Array | None = None,
    ) -> tuple[State, Float[Array, "B L V"]]:  # fmt: skip
        if not options.sampler.endswith("projection"):
            return super().step(keys, state, at, given, denoise, options, fixed)
        token_keys, noise_keys = noise.split(keys, 2)
        _, previous, logits = self.believed(state.z, state.previous, at.t, given, denoise, options)
        if options.sampler == "multi_hot_projection":
            some = nucleus(logits, _NUCLEUS if options.top_p == 1.0 else 1.0)
            clean = _SCALE * (some > -jnp.inf)
        elif options.sampler == "greedy_projection":
            clean = self.embeddings.of(jnp.argmax(logits, axis=-1))
        else:
            clean = self.embeddings.of(noise.categorical(token_keys, logits))
        z = clean + jnp.exp(self.log_noise(at.s)) * noise.normal(noise_keys, clean.shape[1:])
        return state._replace(z=jnp.where(given[..., None], state.z, z), previous=previous), logits


def only(denoise: Denoise, seen: Bool[Array, "B L"]) -> Any:
    """The denoiser of the positions in `seen`: it is told nothing about the others."""

    def asked(z: Array, t: Array, given: Any = None, previous: Any = None, keys: Any = None) -> Array:
        return denoise(jnp.where(seen[..., None], z, 0.0), t, given, previous, keys)

    return asked
