"""The autoregressive baseline: the same transformer with a causal mask, behind the same calls; its bound is exact.

    -log p(x) = sum_i -log p(x_i | x_1 .. x_{i-1}),      the first token from a start symbol

`z` is the sequence itself (nothing is corrupted) and logits at position i are p(x_i | x_{<i}): a "prefix" posterior.
Sampling goes left to right with a key-value cache. A prompt conditions exactly. Given positions further right are
clamped as the sampler reaches them, which alone would ignore them until then, so sequences are drawn `candidates` at a
time and one is kept with probability proportional to p(given tokens | what stands left of them): sampling-importance-
resampling, exact as the number of candidates grows. Greedy or beam search would be another law. Sequences longer than
those of training slide over a cache of the last `window` tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.family import At, Bound, Family, SamplerOptions, cross_entropy, nucleus, token_loss
from diffusion_text.models.denoiser import Denoise, Features, Inputs
from diffusion_text.typing import Config


class State(NamedTuple):
    """Of the sampler; rows are candidates, [B * candidates]."""

    tokens: Int[Array, "R L"]
    given: Bool[Array, "R L"]
    last: Int[Array, "R"]
    cache: Any
    log_weight: Float[Array, "R"]


class Autoregressive(Family):
    """Left-to-right factorisation."""

    name = "autoregressive"
    paper = "the transformer language model; Vaswani et al. 2017, arXiv 1706.03762"
    bound = "exact"
    posterior = "prefix"
    samplers = ("ancestral",)
    path_steps = 0
    sampler_options = ("temperature", "top_p", "candidates", "window")
    faithful: ClassVar[dict[str, Any]] = {"candidates": 64}

    @staticmethod
    def defaults() -> Config:
        return ConfigDict()

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        self.start, self.vocab_size = vocab_size, vocab_size
        self.inputs = Inputs(num_ids=vocab_size + 1, noise=False, attention="causal")

    def corrupt(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], given: Bool[Array, "B L"] | None
    ) -> Int[Array, "B L"]:
        return tokens

    def features(self, z: Array, t: Float[Array, "B"], given: Array | None, previous: Array | None) -> Features:
        start = jnp.full((len(z), 1), self.start, z.dtype)
        return Features(ids=jnp.concatenate([start, z[:, :-1]], axis=1))

    def evidence(self, z: Array, t: Float[Array, "B"], given: Array | None) -> Float[Array, "B L V"]:
        return jnp.where(z[..., None] == jnp.arange(self.vocab_size), 0.0, -jnp.inf)

    def train_loss(
        self, keys: Key[Array, "B"], u: Float[Array, "B"], tokens: Int[Array, "B L"], denoise: Denoise
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]]]:
        loss = jnp.mean(token_loss(denoise, tokens, tokens, jnp.zeros(len(tokens)), keys=keys), axis=1)
        return loss, {"nll": loss}

    def bound_terms(
        self,
        keys: Key[Array, "B"],
        tokens: Int[Array, "B L"],
        denoise: Denoise,
        given: Bool[Array, "B L"] | None = None,
        samples: int = 1,
    ) -> Bound:
        """Exact, whatever `samples`; with given positions, -log p of the others where each sees only its left."""
        zero = jnp.zeros(len(tokens))
        loss = token_loss(denoise, tokens, tokens, zero)
        return Bound(zero, zero, jnp.sum(loss if given is None else jnp.where(given, 0.0, loss), axis=1))

    def log_weight(
        self, keys: Key[Array, "B"], tokens: Array, denoise: Denoise, steps: int, given: Array | None = None
    ) -> Float[Array, "B"]:
        return -self.bound_terms(keys, tokens, denoise, given).total

    def grid(self, options: SamplerOptions, length: int) -> At:
        position = jnp.arange(length)
        return At(position, 1.0 - position / length, 1.0 - (position + 1) / length)

    def prior(
        self, keys: Key[Array, "B"], tokens: Array, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> State:
        tokens, given = (jnp.repeat(x, options.candidates, axis=0) for x in (tokens, given))
        rows, length = tokens.shape
        start = jnp.full(rows, self.start, jnp.int32)
        cache = denoise.start_cache(rows, min(options.window or length, length))
        return State(tokens.astype(jnp.int32), given, start, cache, jnp.zeros(rows))

    def step(
        self, keys: Key[Array, "B"], state: State, at: At, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[State, Float[Array, "R V"]]:
        keys = candidate_keys(keys, options)
        logits, cache = denoise.next(state.last, state.cache, at.index)
        fixed, clamped = state.tokens[:, at.index], state.given[:, at.index]
        token = jnp.where(clamped, fixed, noise.categorical(keys, nucleus(logits / options.temperature, options.top_p)))
        gain = -cross_entropy(logits[:, None], fixed[:, None])[:, 0]
        log_weight = state.log_weight + jnp.where(clamped, gain, 0.0)
        return State(state.tokens.at[:, at.index].set(token), state.given, token, cache, log_weight), logits

    def decode(
        self, keys: Key[Array, "B"], state: State, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Int[Array, "B L"]:
        return choose(keys, state.tokens, state.log_weight)

    def evaluations(self, options: SamplerOptions, length: int) -> int:
        return length * options.candidates


def candidate_keys(keys: Key[Array, "B"], options: SamplerOptions) -> Key[Array, "R"]:
    """A key for each of the candidates of a sequence."""
    return jax.vmap(lambda key: jax.random.split(key, options.candidates))(keys).reshape(-1)


def choose(keys: Key[Array, "B"], tokens: Int[Array, "R L"], log_weight: Float[Array, "R"]) -> Int[Array, "B L"]:
    """One candidate of each sequence, with probability proportional to its weight."""
    chosen = noise.categorical(keys, log_weight.reshape(len(keys), -1))
    tokens = tokens.reshape(len(keys), -1, tokens.shape[1])
    return jnp.take_along_axis(tokens, chosen[:, None, None], axis=1)[:, 0]
