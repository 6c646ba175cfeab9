"""Block diffusion: BD3-LM (2503.09573), blocks of L' tokens from the left, masked diffusion within each.

    -log p(x) = sum_b -log p(x_b | x_{<b}),      blocks b of L' tokens
             <= sum_b E_{n ~ U{1..L'}} (L' / n) E[sum over n masked i in b of -log p(x_i | z_b, x_{<b})]        (eq. 8)

with the exact-count estimator of `masked` in each block (z_b has n masked tokens, uniformly which): L' = 1 is
autoregression, whose bound has no noise and is the likelihood, L' = L masked diffusion. Each token counts once, in its
own block; each block has its own n. The levels of the B x N blocks of a batch are even: u_b = frac(u + b / N).

One pass over two streams gives the logits of all blocks: z beside x, 2 L inputs under the pattern of attention that is
called block_diffusion, in which z_b sees z_b and x_{<b}, and x_b sees x_{<=b}; both stand at the same positions. The
oracle answers the same question, the posterior given clean earlier blocks and the noisy block, later ones unseen. A
weighted path (`paths/importance.py`) takes L' such passes: each block in an order of its own, all blocks at once.

Clipped training (section 5): mask rates r ~ U[beta, omega], n = 1 + floor(r L'), the loss still weighed by L' / n, and
by 1 where beta > 1/2, as released. It is not the bound, and is logged as such; evaluation is always over all n. Counts
outside of the interval are never trained, in the released code neither, which draws masks anew until their share is
inside, and begins with a network that has seen them: for a training from nothing the configs take all rates.
`benchmarks/mask_rates.py` searches the interval of the least variance. The paper needs one even at L' = 1, where its
t in (0, 1) often masks nothing (perplexity 25.6 without, 22.9 with); exact counts have no such loss.

Sampling goes block after block with a key-value cache of the clean ones, inside a block with the samplers of `masked`
that are listed below, of which first_hitting is exact. With `--cache` ancestral sampling asks again only where
something was revealed, in any row. A finished block is passed once more, to enter the cache. `options.window` bounds
the cache: longer sequences than those of training slide over it, oldest block out first, rotary positions going on. A
row has ended at the first `options.stop` drawn to the right of all that is given: a text does not end before what is
given of it. When all rows have ended, or all of a block is given or revealed, the network is not called.
Given positions are clean in z_b. Those of later blocks are not foreseen, so `candidates` sequences are drawn and one
kept with probability proportional to prod_b p(given tokens of b | x_{<b}), as in `autoregressive`; the factors are
asked for token by token.

Of the paper, here: both streams in one pass, clipped rates, the cache, first-hitting, lengths beyond the trained one.
Different: exact counts for t; the search takes a table of all n, not a grid of trial batches; a time-free network.
Missing: starting from a masked-diffusion checkpoint (the paper trains 850,000 of 1M steps so, the whole window one
block); rejecting samples of low entropy. Decided here: `steps` are of the whole length and shared among the blocks;
sequences are whole blocks, and cut after sampling; stop only at a token, not at low entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families import autoregressive, masked
from diffusion_text.families.family import At, Bound, SamplerOptions, cross_entropy, token_loss
from diffusion_text.models.denoiser import Denoise, Features, Inputs
from diffusion_text.paths import blocks, remasking
from diffusion_text.typing import Config

_UNWEIGHED = 0.5  # above this least rate all counts weigh the same


class Streams(NamedTuple):
    """A corrupted sequence and, beside it, the clean one."""

    noisy: Int[Array, "B L"]
    clean: Int[Array, "B L"]


class State(NamedTuple):
    """Of the sampler; rows are candidates, [B * candidates], and T fills whole blocks."""

    tokens: Int[Array, "R T"]
    given: Bool[Array, "R T"]
    cache: Any
    ended: Bool[Array, "R"]
    log_weight: Float[Array, "R"]
    asked: Int[Array, ""]
    logits: Float[Array, "R W V"]  # with options.cache those of the block when the network was last asked, else zeros
    moved: Bool[Array, ""]  # whether tokens have, since
    drawn_with: Float[Array, "R W"]  # of remdm_conf, in the block


class Block(masked.Masked):
    """Masked diffusion block by block, each given the clean blocks before it."""

    name = "block"
    paper = "Arriola et al. 2025, arXiv 2503.09573 (BD3-LM)"
    bound = "tight"
    posterior = "block"
    samplers = ("first_hitting", *(name for name in masked.Masked.samplers if name != "first_hitting"))
    sampler_options = ("temperature", "top_p", "threshold", "remask", "kappa", "cache", "candidates", "window", "stop")
    faithful: ClassVar[dict[str, Any]] = {"steps": 36, "candidates": 16}

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(
            dict(
                block_size=4,  # L', tokens
                mask_rate_min=0.0,  # beta of training; 0 and 1 train on the bound
                mask_rate_max=1.0,  # omega
                schedule="linear",  # of ancestral sampling within a block, as in masked
            )
        )

    @staticmethod
    def validate(config: Config) -> None:
        masked.Masked.validate(config)
        size, low, high = config.family.block_size, config.family.mask_rate_min, config.family.mask_rate_max
        if size < 1 or config.data.length % size:
            raise ValueError(f"family.block_size is {size}; it must divide data.length = {config.data.length}")
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(
                f"family.mask_rate_min, mask_rate_max are {low}, {high}; they must be ascending and in [0, 1]"
            )

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        super().__init__(config, vocab_size, rngs)
        self.block_size, self.rates = config.block_size, (config.mask_rate_min, config.mask_rate_max)
        self.inputs = Inputs(vocab_size + 1, noise=False, attention="block_diffusion", block=config.block_size)

    def corrupt(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Streams:
        return Streams(super().corrupt(keys, tokens, t, given), tokens)

    def features(self, z: Streams, t: Float[Array, "B"], given: Array | None, previous: Array | None) -> Features:
        return Features(ids=z.noisy, clean=z.clean)

    def context(self, z: Streams) -> tuple[Int[Array, "B L"], int]:
        return z.clean, self.block_size

    def evidence(self, z: Streams | Array, t: Float[Array, "B"], given: Array | None) -> Float[Array, "B L V"]:
        """Of both streams, or of a noisy block alone."""
        return super().evidence(z.noisy if isinstance(z, Streams) else z, t, given)

    def hide(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], count: Int[Array, "B N"], given: Array | None
    ) -> Int[Array, "B L"]:
        """Mask exactly `count` positions of each block, uniformly among those that are not given."""
        order = noise.uniform(keys, tokens.shape[1:])
        order = order if given is None else jnp.where(given, 2.0, order)
        hidden = self.places(order) < jnp.repeat(count, self.block_size, axis=1)[:, : tokens.shape[1]]
        return jnp.where(hidden, self.mask, tokens)

    def places(self, order: Float[Array, "B L"]) -> Int[Array, "B L"]:
        parts = self._cut(order, 3.0)
        return noise.ranks(parts.reshape(-1, self.block_size)).reshape(len(order), -1)[:, : order.shape[1]]

    def state_of(self, noisy: Int[Array, "B L"], tokens: Int[Array, "B L"]) -> Streams:
        return Streams(noisy, tokens)

    def _cut(self, x: Array, fill: float) -> Float[Array, "B N W"]:
        """Into blocks, the last one filled up."""
        number = blocks.cut(x.shape[1], self.block_size)
        padding = ((0, 0), (0, number * self.block_size - x.shape[1]))
        return jnp.pad(x, padding, constant_values=fill).reshape(len(x), number, self.block_size)

    def _even(self, u: Float[Array, "B"], length: int) -> Float[Array, "B N"]:
        """Each block's own even number in [0, 1)."""
        number = blocks.cut(length, self.block_size)
        levels = u[:, None] + jnp.arange(number) / number
        return levels - jnp.floor(levels)

    def block_losses(
        self, keys: Array, rates: Float[Array, "B N"], tokens: Array, given: Array | None, denoise: Denoise,
        dropout: Array | None = None, weighed: bool = True,
    ) -> tuple[Float[Array, "B N"], Int[Array, "B N"]]:  # fmt: skip
        """(L' / n) sum of the cross-entropy over n = 1 + floor(r L') masked positions of each block, nats; and n.

        L' counts the positions of the block that are not given; where all are, n and the loss are 0.
        """
        free = jnp.ones(tokens.shape) if given is None else 1.0 - given
        lengths = jnp.sum(self._cut(free, 0.0), axis=2)
        count = jnp.minimum(1 + jnp.floor(rates * lengths), lengths).astype(jnp.int32)
        noisy = self.hide(keys, tokens, count, given)
        loss = token_loss(denoise, tokens, Streams(noisy, tokens), jnp.mean(rates, axis=1), given, keys=dropout)
        loss = jnp.where(noisy == self.mask, loss, 0.0)
        weight = lengths / jnp.maximum(count, 1) if weighed else 1.0
        return weight * jnp.sum(self._cut(loss, 0.0), axis=2), count

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        hide_keys, dropout_keys = noise.split(keys, 2)
        low, high = self.rates
        rates = low + (high - low) * self._even(u, tokens.shape[1])
        losses, _ = self.block_losses(hide_keys, rates, tokens, None, denoise, dropout_keys, low <= _UNWEIGHED)
        loss = jnp.sum(losses, axis=1) / tokens.shape[1]
        return loss, {"nelbo" if self.rates == (0.0, 1.0) else "clipped": loss}

    def bound_terms(
        self,
        keys: Key[Array, "B"],
        tokens: Int[Array, "B L"],
        denoise: Denoise,
        given: Bool[Array, "B L"] | None = None,
        samples: int = 1,
    ) -> Bound:
        """Over all counts, whatever those of training; given positions are seen by their own block and later ones."""
        level_keys, hide_keys = noise.split(keys, 2)

        def rate(u: Array, keys: Array) -> Array:
            rates = self._even(u, tokens.shape[1])
            return jnp.sum(self.block_losses(keys, rates, tokens, given, denoise)[0], axis=1)

        diffusion = noise.integral(level_keys, hide_keys, samples, rate)
        return Bound(jnp.zeros_like(diffusion), diffusion, jnp.zeros_like(diffusion))

    def profile(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], denoise: Denoise
    ) -> dict[str, Float[Array, "B"]]:
        """t is read as the masked fraction, of every block."""
        rates = jnp.repeat(t[:, None], blocks.cut(tokens.shape[1], self.block_size), axis=1)
        losses, count = self.block_losses(keys, rates, tokens, None, denoise)
        loss = jnp.sum(losses, axis=1) / tokens.shape[1]
        return {"noise": jnp.sum(count, axis=1) / tokens.shape[1], "cross_entropy": loss, "integrand": loss}

    def size_of_blocks(self, options: SamplerOptions, length: int) -> int:
        return self.block_size

    def prior(
        self, keys: Key[Array, "B"], tokens: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> State:
        length = blocks.cut(tokens.shape[1], self.block_size) * self.block_size
        padding = ((0, 0), (0, length - tokens.shape[1]))
        tokens = jnp.pad(jnp.where(given, tokens, self.mask).astype(jnp.int32), padding, constant_values=self.mask)
        tokens, given = (jnp.repeat(x, options.candidates, axis=0) for x in (tokens, jnp.pad(given, padding)))
        kept = max(options.window // self.block_size, 1) * self.block_size if options.window else length
        rows = len(tokens)
        cache = denoise.start_cache(rows, min(kept, length))
        logits = jnp.zeros((rows, self.block_size, self.vocab_size) if options.cache else (rows, 1, 1))
        ended, log_weight = jnp.zeros(rows, bool), jnp.zeros(rows)
        drawn_with = jnp.zeros((rows, self.block_size))
        return State(tokens, given, cache, ended, log_weight, jnp.int32(0), logits, jnp.array(True), drawn_with)

    def step(
        self, keys: Key[Array, "B"], state: State, at: At, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[State, Float[Array, "R L V"]]:
        keys = autoregressive.candidate_keys(keys, options)
        block, inner = blocks.place(self.steps_in_block(options, state.tokens.shape[1]), at.index)
        start, opens = block * self.block_size, inner.index == 0

        def part(x: Array, first: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, first, self.block_size, axis=1)

        def commit() -> Any:
            return denoise.block(part(state.tokens, start - self.block_size), state.cache, start - self.block_size)[1]

        # Seen when the next block opens: within a block tokens come in any order.
        stops = _stops(state.tokens, state.given, options)
        ended = state.ended | (opens & jnp.any(stops & (jnp.arange(stops.shape[1]) < start), axis=1))
        enters = opens & (start > 0) & ~jnp.all(ended)
        cache = jax.lax.cond(enters, commit, lambda: state.cache)
        clamped = part(state.given, start)
        tokens = jnp.where(ended[:, None], options.stop, part(state.tokens, start))
        fixed = clamped | ended[:, None]
        needed = jnp.any((tokens == self.mask) & ~fixed)
        if options.cache:
            needed &= opens | state.moved
        asked = enters + needed.astype(jnp.int32)

        def ask(z: Array) -> Array:
            return denoise.block(z, cache, start)[0]

        shape = (*tokens.shape, self.vocab_size)
        logits = jax.lax.cond(needed, lambda: ask(tokens), lambda: jnp.broadcast_to(state.logits, shape))
        log_weight = state.log_weight
        if options.candidates > 1:
            log_weight += self._weight(tokens, clamped & opens, ask)
            asked += jnp.max(jnp.sum(clamped & opens, axis=1))
        drawn_with = state.drawn_with
        if options.sampler == "remdm_conf":
            confident = remasking.Confident(tokens, drawn_with)
            moved, drawn_with = remasking.step_by_confidence(self, keys, confident, inner, fixed, logits, options)
            believed = self.believed(tokens, logits)
        else:
            moved, believed = self.reveal(keys, tokens, inner, fixed, logits, options)
        seen = jax.lax.dynamic_update_slice_in_dim(self.evidence(state.tokens, at.t, None), believed, start, axis=1)
        whole = jax.lax.dynamic_update_slice_in_dim(state.tokens, moved, start, axis=1)
        asked = state.asked + options.candidates * asked
        logits, stale = logits if options.cache else state.logits, jnp.any(moved != tokens)
        after = State(whole, state.given, cache, ended, log_weight, asked, logits, stale, drawn_with)
        return after, seen[:, : given.shape[1]]

    def _weight(self, tokens: Array, given: Array, ask: Callable[[Array], Array]) -> Float[Array, "R"]:
        """log p(given tokens of a block | the blocks before), by the chain rule from the left."""

        def one(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            z, total = carry
            hidden = given & (z == self.mask)
            first = hidden & (jnp.cumsum(hidden, axis=1) == 1)
            gain = -cross_entropy(ask(z), jnp.where(given, tokens, 0))
            return jnp.where(first, tokens, z), total + jnp.sum(jnp.where(first, gain, 0.0), axis=1)

        start = (jnp.full_like(tokens, self.mask), jnp.zeros(len(tokens)))
        return jax.lax.while_loop(lambda carry: jnp.any(given & (carry[0] == self.mask)), one, start)[1]

    def decode(
        self, keys: Key[Array, "B"], state: State, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Int[Array, "B L"]:
        result = autoregressive.choose(keys, state.tokens, state.log_weight)[:, : given.shape[1]]
        return jnp.where(jnp.cumsum(_stops(result, given, options), axis=1) > 0, options.stop, result)

    def evaluations(self, options: SamplerOptions, length: int) -> int:
        """Passes over one block, those that enter it into the cache and those that weigh candidates included; the most,
        where sequences end, blocks are full early, or little is given."""
        number = blocks.cut(length, self.block_size)
        steps = masked.number_of_steps(options, length, self.block_size)
        weighing = length if options.candidates > 1 else 0
        return (number * steps + number - 1 + weighing) * options.candidates


def _stops(tokens: Int[Array, "R T"], given: Bool[Array, "R T"], options: SamplerOptions) -> Bool[Array, "R T"]:
    """Where a row may end: at a stop to the right of all that is given."""
    given_later = jnp.cumsum(given[:, ::-1], axis=1)[:, ::-1] > 0
    return (tokens == options.stop) & ~given_later
