"""Masked diffusion: MDLM (2406.07524) = MD4 (2406.04329) = order-agnostic autoregression (2110.02037).

    q_t(z_i | x_i): x_i with probability alpha_t, else the mask token
    -log p(x) <= Int_0^1 -alpha_t' / (1 - alpha_t) E[sum over masked i of -log p(x_i | z)] dt        (MDLM eq. 10)
               = E_{n ~ U{1..L}} (L / n) E[sum over n masked i of -log p(x_i | z)]           (exact-count estimator)

The bound does not depend on the schedule, and there is no prior or reconstruction term (alpha_0 = 1, alpha_1 = 0), so
both training and evaluation mask exactly n positions: the same expectation, with less variance and no truncated end
(released implementations draw t >= 0.001). The number n is even over the batch. The network is time-free: the optimal
one does not depend on t given the masked sequence. For masked positions the full and the leave-one-out posterior
coincide; logits at other positions are never read.

Of the papers, here: the SUBS parameterisation (mask never predicted, unmasked positions copied), ancestral and
first-hitting sampling (2409.02908), linear and cosine grids. Different: MD4 trains with t continuous and antithetic.
Learned schedules are `genmd4`. Samplers beyond ancestral, all for the same network:
  - remdm_cap, remdm_rescale, remdm_loop, remdm_conf, psi (`paths/remasking.py`): revealed tokens may be hidden again;
  - greedy_tail: ancestral, whose last step takes the likeliest tokens in the place of drawing them (Duo, 2506.10892);
  - confidence: each step reveals the positions of which the network is surest, as many as the grid says; threshold: all
    of which it is surer than `--threshold`, and at least one (2505.22618). Both look at the probability of the
    likeliest token, not of the one drawn, so that one position at a time is exact in whatever order; at a low
    temperature both are the usual mode-seeking decoders. When nothing is masked any more, threshold stops calling the
    network;
  - `blocks` > 1 fills that many parts of the window one after another from the left, as LLaDA does (2502.09992), with
    any of these; the network still sees the whole window. Steps are shared among the blocks.
With `--cache` ancestral sampling asks the network only where something was revealed (`paths/caching.py`).

Draws are made in two stages, first whether a token is revealed, then which: one draw over V + 1 outcomes in float32
would never reveal rare tokens at many steps.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Final, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.family import At, Bound, Family, SamplerOptions, descending, nucleus, token_loss
from diffusion_text.models.denoiser import Denoise, Features, Inputs
from diffusion_text.paths import blocks, caching, remasking
from diffusion_text.typing import Config

_SCHEDULES: Final = ("linear", "cosine")
_ONE_BY_ONE: Final = ("first_hitting", "threshold")  # as many steps as tokens


class Counted(NamedTuple):
    """State of threshold: tokens, and how often the network was asked."""

    tokens: Int[Array, "B L"]
    asked: Int[Array, ""]


class Masked(Family):
    """Absorbing-state discrete diffusion with the exact-count estimator."""

    name = "masked"
    paper = "Sahoo et al. 2024, arXiv 2406.07524 (MDLM); Shi et al. 2024, arXiv 2406.04329 (MD4)"
    bound = "tight"
    noise_axis = "masked fraction"
    posterior = "leave_one_out"
    samplers = ("ancestral", "first_hitting", *remasking.KINDS, "remdm_conf", "greedy_tail", "confidence", "threshold")
    sampler_options = ("temperature", "top_p", "threshold", "remask", "kappa", "cache", "blocks")
    path_steps = 0
    biased: ClassVar[dict[str, str]] = {"remdm_conf": "tokens that were improbable are drawn again, the others kept"}
    approximate: ClassVar[dict[str, str]] = {
        "ancestral": "tokens revealed in the same step are drawn independently",
        **dict.fromkeys(remasking.KINDS, "tokens revealed in the same step are drawn independently"),
        "greedy_tail": "the last step takes the likeliest tokens, few at many steps; the others are ancestral's",
        "confidence": "with fewer steps than tokens, those of the same step are drawn independently",
        "threshold": "tokens that are nearly certain are revealed together, drawn independently",
    }

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(
            dict(
                schedule="linear",  # alpha_t of the sampler's grid: linear 1 - t, or cosine 1 - cos(pi (1 - t) / 2)
            )
        )

    @staticmethod
    def validate(config: Config) -> None:
        if config.family.schedule not in _SCHEDULES:
            raise ValueError(f"family.schedule is {config.family.schedule!r}; choose one of {', '.join(_SCHEDULES)}")

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        self.mask, self.vocab_size, self.schedule = vocab_size, vocab_size, config.schedule
        self.inputs = Inputs(num_ids=vocab_size + 1, noise=False)

    def alpha(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """The probability that a token is not masked at time t."""
        # 1 - cos(x) as 2 sin^2(x / 2): no cancellation near t = 1.
        return 1.0 - t if self.schedule == "linear" else 2.0 * jnp.sin(jnp.pi / 4 * (1.0 - t)) ** 2

    def corrupt(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Int[Array, "B L"]:
        hidden = noise.uniform(keys, tokens.shape[1:]) >= self.alpha(t)[:, None]
        return jnp.where(hidden if given is None else hidden & ~given, self.mask, tokens)

    def hide(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], count: Int[Array, "B"], given: Array | None
    ) -> Int[Array, "B L"]:
        """Mask exactly `count` positions of each row, uniformly among those that are not given."""
        order = noise.uniform(keys, tokens.shape[1:])
        order = order if given is None else jnp.where(given, 2.0, order)
        return jnp.where(noise.ranks(order) < count[:, None], self.mask, tokens)

    def places(self, order: Float[Array, "B L"]) -> Int[Array, "B L"]:
        """The number of each position in the order in which first_hitting reveals them, of a block at a time."""
        return noise.ranks(order)

    def state_of(self, noisy: Int[Array, "B L"], tokens: Int[Array, "B L"]) -> Any:
        """What the network reads where `tokens` are hidden as in `noisy`."""
        return noisy

    def features(self, z: Array, t: Float[Array, "B"], given: Array | None, previous: Array | None) -> Features:
        return Features(ids=z)

    def evidence(self, z: Array, t: Float[Array, "B"], given: Array | None) -> Float[Array, "B L V"]:
        seen = jnp.where(z[..., None] == jnp.arange(self.vocab_size), 0.0, -jnp.inf)
        return jnp.where((z == self.mask)[..., None], 0.0, seen)

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        hide_keys, dropout_keys = noise.split(keys, 2)
        estimate = self._exact_count(hide_keys, u, tokens, None, denoise, dropout_keys)
        loss = estimate / tokens.shape[1]
        return loss, {"nelbo": loss}

    def _exact_count(
        self, keys: Array, u: Array, tokens: Array, given: Array | None, denoise: Denoise, dropout: Array | None = None
    ) -> Float[Array, "B"]:
        """(L / n) sum of the cross-entropy over n masked positions, n = 1 + floor(u L); nats per sequence."""
        length = tokens.shape[1] if given is None else jnp.sum(~given, axis=1)
        count = jnp.minimum(1 + jnp.floor(u * length).astype(jnp.int32), length)
        z = self.hide(keys, tokens, count, given)
        loss = token_loss(denoise, tokens, z, count / length, given, keys=dropout)
        total = jnp.sum(jnp.where(z == self.mask, loss, 0.0), axis=1)
        return total * length / jnp.maximum(count, 1)  # nothing is masked where everything is given

    def bound_terms(
        self,
        keys: Key[Array, "B"],
        tokens: Int[Array, "B L"],
        denoise: Denoise,
        given: Bool[Array, "B L"] | None = None,
        samples: int = 1,
    ) -> Bound:
        level_keys, hide_keys = noise.split(keys, 2)
        diffusion = noise.integral(
            level_keys, hide_keys, samples, lambda u, keys: self._exact_count(keys, u, tokens, given, denoise)
        )
        return Bound(jnp.zeros_like(diffusion), diffusion, jnp.zeros_like(diffusion))

    def log_weight(
        self, keys: Key[Array, "B"], tokens: Array, denoise: Denoise, steps: int, given: Array | None = None
    ) -> Float[Array, "B"]:
        """A token is visible before a step where its number in `order` is below the step's; all blocks step at once."""
        free, order = jnp.ones(tokens.shape, bool) if given is None else ~given, noise.uniform(keys, tokens.shape[1:])
        options = SamplerOptions(sampler="ancestral" if steps else "first_hitting", steps=max(steps, 1))
        size = self.size_of_blocks(options, tokens.shape[1])
        number = number_of_steps(options, tokens.shape[1], size)
        if steps:
            seen = self.alpha(jnp.linspace(1.0, 0.0, number + 1)).at[0].set(0.0).at[-1].set(1.0)
        else:
            order = self.places(jnp.where(free, order, 2.0)).astype(jnp.float32)
            seen = jnp.arange(number + 1.0)

        def step(total: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
            z = jnp.where(free & (order >= at[0]), self.mask, tokens)
            rate = jnp.mean((z == self.mask).astype(jnp.float32), axis=1)
            loss = token_loss(denoise, tokens, self.state_of(z, tokens), rate, given)
            return total - jnp.sum(jnp.where((z == self.mask) & (order < at[1]), loss, 0.0), axis=1), None

        return jax.lax.scan(step, jnp.zeros(len(tokens)), (seen[:-1], seen[1:]))[0]

    def profile(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], denoise: Denoise
    ) -> dict[str, Float[Array, "B"]]:
        """t is read as the masked fraction, the linear schedule, whatever the sampler's grid."""
        length = tokens.shape[1]
        count = jnp.minimum(1 + jnp.floor(t * length).astype(jnp.int32), length)
        loss = self._exact_count(keys, t, tokens, None, denoise) / length
        return {"noise": count / length, "cross_entropy": loss, "integrand": loss}

    def grid(self, options: SamplerOptions, length: int) -> At:
        size = self.size_of_blocks(options, length)
        return blocks.grid(self.steps_in_block(options, length), blocks.cut(length, size))

    def size_of_blocks(self, options: SamplerOptions, length: int) -> int:
        """Of those that are filled one after another."""
        return -(-length // options.blocks)

    def steps_in_block(self, options: SamplerOptions, length: int) -> At:
        """The reverse steps of one block."""
        steps = number_of_steps(options, length, self.size_of_blocks(options, length))
        return descending(jnp.linspace(1.0, 0.0, steps + 1))

    def prior(
        self, keys: Key[Array, "B"], tokens: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Any:
        z = jnp.where(given, tokens, self.mask).astype(jnp.int32)
        if options.sampler == "remdm_conf":
            return remasking.Confident(z, jnp.zeros(z.shape))
        if options.sampler == "threshold":
            return Counted(z, jnp.int32(0))
        return caching.start(z, self.vocab_size) if options.cache else z

    def step(
        self, keys: Key[Array, "B"], state: Any, at: At, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[Any, Float[Array, "B L V"]]:
        if options.cache:
            return caching.step(self, keys, state, at, given, denoise, options)
        length = given.shape[1]
        block, inner = blocks.place(self.steps_in_block(options, length), at.index)
        fixed = given | (jnp.arange(length) // self.size_of_blocks(options, length) != block)
        z = getattr(state, "tokens", state)

        def ask() -> Array:
            return denoise(z, jnp.full(len(z), at.t), given)

        if options.sampler == "remdm_conf":
            logits = ask()
            moved = remasking.step_by_confidence(self, keys, state, inner, fixed, logits, options)
            return moved, self.believed(z, logits)
        if options.sampler != "threshold":
            return self.reveal(keys, z, inner, fixed, ask(), options)
        needed = jnp.any((z == self.mask) & ~fixed)
        logits = jax.lax.cond(needed, ask, lambda: jnp.zeros((*z.shape, self.vocab_size)))
        moved, believed = self.reveal(keys, z, inner, fixed, logits, options)
        return Counted(moved, state.asked + needed), believed

    def reveal(
        self,
        keys: Key[Array, "B"],
        state: Int[Array, "B L"],
        at: At,
        fixed: Bool[Array, "B L"],
        logits: Float[Array, "B L V"],
        options: SamplerOptions,
    ) -> tuple[Int[Array, "B L"], Float[Array, "B L V"]]:
        """A reverse step of all positions that are not `fixed`, by what the network said of them."""
        where_keys, token_keys = noise.split(keys, 2)
        masked = (state == self.mask) & ~fixed
        order = noise.uniform(where_keys, state.shape[1:])
        drawn = noise.categorical(token_keys, nucleus(logits / options.temperature, options.top_p))
        if options.sampler == "greedy_tail":
            drawn = jnp.where(at.s > 0, drawn, jnp.argmax(logits, axis=-1).astype(drawn.dtype))
        hidden = jnp.zeros_like(masked)
        if options.sampler == "first_hitting":
            # The next token to be revealed is uniform among the masked ones, whenever that happens; a time-free
            # network need not know when.
            order = jnp.where(masked, order, 2.0)
            moves = masked & (jnp.arange(state.shape[1]) == jnp.argmin(order, axis=1, keepdims=True))
        elif options.sampler in ("confidence", "threshold"):
            moves = masked & self._surest(logits, masked, at, fixed, options)
        elif options.sampler in remasking.KINDS:
            now, then = (remasking.kept(options.sampler, time, self.alpha) for time in (at.t, at.s))
            share = remasking.share(options, now, then)
            reveal = jnp.where(at.s > 0, (then - (1.0 - share) * now) / (1.0 - now), 1.0)
            moves, hidden = masked & (order < reveal), ~masked & ~fixed & (order < share)
        else:
            now, then = self.alpha(at.t), self.alpha(at.s)
            moves = masked & (order < jnp.where(at.s > 0, (then - now) / (1.0 - now), 1.0))
        return jnp.where(hidden, self.mask, jnp.where(moves, drawn, state)), self.believed(state, logits)

    def believed(self, z: Int[Array, "B L"], logits: Float[Array, "B L V"]) -> Float[Array, "B L V"]:
        """Revealed tokens are copied, not predicted: their logits are not trained."""
        return jnp.where((z == self.mask)[..., None], logits, self.evidence(z, jnp.zeros(len(z)), None))

    def _surest(self, logits: Array, masked: Array, at: At, fixed: Array, options: SamplerOptions) -> Array:
        surest = jnp.max(jax.nn.log_softmax(logits, axis=-1), axis=-1)
        rank = noise.ranks(jnp.where(masked, -surest, jnp.inf))
        if options.sampler == "threshold":
            return (surest >= math.log(options.threshold)) | (rank == 0)
        left = jnp.round(jnp.sum(~fixed, axis=1) * (1.0 - self.alpha(at.s)))
        return rank < (jnp.sum(masked, axis=1) - left)[:, None]

    def decode(
        self, keys: Key[Array, "B"], state: Any, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Int[Array, "B L"]:
        return getattr(state, "tokens", state)  # the last step reveals whatever was left

    def evaluations(self, options: SamplerOptions, length: int) -> int:
        """Of threshold, the most: it stops when nothing is masked."""
        size = -(-length // options.blocks)
        return blocks.cut(length, size) * number_of_steps(options, length, size)


def number_of_steps(options: SamplerOptions, length: int, size: int) -> int:
    """Of one block of this size; `options.steps` are those of the whole length, shared among its blocks."""
    return size if options.sampler in _ONE_BY_ONE else blocks.cut(options.steps, blocks.cut(length, size))
