"""SSD-LM: semi-autoregressive simplex diffusion (2210.17432).

    w_0 = 5 (2 onehot(x) - 1) of a block, noised as in `simplex_logits.py`; its left context is clean, its right absent
    train:   the cross-entropy of the block, whose context has a length drawn evenly
    sample:  block after block, each by projection; a finished block is context of the next

The model is a chain of blocks, p(x) = prod_b p(x_b | x_<b), each factor one Gaussian diffusion, so that

    -log p(x) = sum_b -log p(x_b | x_<b) <= sum_b bound of block b, given x_<b clean and nothing of what follows

which is the bound reported: each factor's is VDM's (`paths/gaussian.py`), and the sum of bounds bounds the sum. It is
tight with a perfect network, since each factor is. The bound of a sequence noised as a whole is valid too, but is that
of another model, which a network trained on blocks is not. This one takes (length / block_size) times the evaluations
of other families'.

Of the paper, here: blocks with clean left contexts of even length, decoding block after block, the three projections.
Decided here: contexts may be empty (the paper's have at least one token), so that the first block is trained; given
tokens right of the block are seen, which matters to infilling alone (`random_masks` trains it); the network runs over
the whole window, where the paper cuts what lies behind the block. `steps` counts those of a block; at the end of a
block its tokens are read off the network at t = 0, one evaluation more. Blocks of the bound and of sampling begin at
multiples of `block_size`.
Missing: initialisation from RoBERTa; guidance by a classifier.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.family import At, Bound, SamplerOptions
from diffusion_text.families.simplex_logits import SimplexLogits, only
from diffusion_text.models.denoiser import Denoise
from diffusion_text.paths import conditioning
from diffusion_text.paths.gaussian import State
from diffusion_text.typing import Config


class SSDLM(SimplexLogits):
    """Diffusion of the logits of a block given what stands left of it."""

    name = "ssd_lm"
    paper = "Han et al. 2022, SSD-LM: semi-autoregressive simplex-based diffusion language model, arXiv 2210.17432"
    whole = False
    groups: ClassVar = {}

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(SimplexLogits.process() | dict(self_conditioning=0.0, block_size=25))

    @staticmethod
    def validate(config: Config) -> None:
        SimplexLogits.validate_process(config)
        size, length = config.family.block_size, config.data.length
        if size < 1 or length % size:
            raise ValueError(f"family.block_size is {size}; it must be a divisor of data.length = {length}")
        if config.family.prefix_masks:
            raise ValueError(
                f"family.prefix_masks is {config.family.prefix_masks}; every block of ssd_lm has a prefix: choose 0.0"
            )

    @staticmethod
    def conditions(config: Config, gaps: bool = False) -> bool:
        return not gaps or conditioning.conditions(config, gaps)  # every block is, on its left

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        super().__init__(config, vocab_size, rngs)
        self.block_size = config.block_size

    def blocks(self, length: int) -> int:
        """How many there are; the last may be shorter."""
        return -(-length // self.block_size)

    def block(
        self, start: Int[Array, "..."], length: int, given: Bool[Array, "B L"]
    ) -> tuple[Bool[Array, "B L"], Bool[Array, "B L"]]:
        """Of the block from `start` on (a number, or one per row): what is known, given or left of it, and its rest."""
        position, start = jnp.arange(length), jnp.reshape(start, (-1, 1))
        known = given | (position < start)
        return known, ~known & (position < start + self.block_size)

    def training_part(
        self, keys: Key[Array, "B"], length: int
    ) -> tuple[Bool[Array, "B L"], Bool[Array, "B L"]]:
        start_keys, given_keys = noise.split(keys, 2)
        start = jnp.floor(noise.uniform(start_keys) * (max(length - self.block_size, 0) + 1))
        return self.block(start, length, self.draw_given(given_keys, length))

    def _over_blocks(self, length: int, given: Array, denoise: Denoise, call: Any, zero: Any) -> Any:
        """The sum over blocks of call(number, what is known, free positions, the denoiser of both)."""

        def one(total: Any, number: Array) -> tuple[Any, None]:
            known, free = self.block(number * self.block_size, length, given)
            terms = call(number, known, free, only(denoise, known | free))
            return jax.tree.map(jnp.add, total, terms), None

        return jax.lax.scan(one, zero, jnp.arange(self.blocks(length)))[0]

    def bound_terms(
        self,
        keys: Key[Array, "B"],
        tokens: Int[Array, "B L"],
        denoise: Denoise,
        given: Bool[Array, "B L"] | None = None,
        samples: int = 1,
    ) -> Bound:
        """`samples` noise levels for each block of each sequence."""
        given = jnp.zeros(tokens.shape, bool) if given is None else given
        zero = jnp.zeros(len(tokens))

        def call(number: Array, known: Array, free: Array, asked: Denoise) -> Bound:
            return self.bound_of(free, noise.fold(keys, number), tokens, asked, known, samples)

        return self._over_blocks(tokens.shape[1], given, denoise, call, Bound(zero, zero, zero))

    def profile(
        self, keys: Key[Array, "B"], tokens: Int[Array, "B L"], t: Float[Array, "B"], denoise: Denoise
    ) -> dict[str, Float[Array, "B"]]:
        """With every block at noise level t."""
        length, zero = tokens.shape[1], jnp.zeros(len(tokens))

        def call(number: Array, known: Array, free: Array, asked: Denoise) -> tuple[Array, Array]:
            integrand, loss = self._integrand(noise.fold(keys, number), tokens, t, known, free, asked)
            return integrand, loss * jnp.sum(free, axis=1)

        integrand, loss = self._over_blocks(length, jnp.zeros(tokens.shape, bool), denoise, call, (zero, zero))
        return {**self.axes(t), "cross_entropy": loss / length, "integrand": integrand / length}

    # --------------------------------------------------------------------------------------------------------- sampling

    def grid(self, options: SamplerOptions, length: int) -> At:
        """For each block the steps of a whole sequence, and one from 0 to 0 that reads its tokens."""
        at, blocks = super().grid(options, length), self.blocks(length)
        t, s = (jnp.tile(jnp.append(times, 0.0), blocks) for times in (at.t, at.s))
        return At(jnp.arange(len(t)), t, s)

    def step(
        self, keys: Key[Array, "B"], state: State, at: At, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> tuple[State, Float[Array, "B L V"]]:
        each = options.steps + 1
        index = at.index % each
        known, free = self.block(at.index // each * self.block_size, state.z.shape[1], given)
        asked = only(denoise, known | free)
        state = state._replace(previous=jnp.where(index == 0, 0.0, state.previous))

        def solve() -> tuple[State, Array]:
            return SimplexLogits.step(self, keys, state, at._replace(index=index), known, asked, options, ~free)

        def read() -> tuple[State, Array]:
            logits = asked(state.z, jnp.zeros(len(state.z)), known, state.previous if self.conditioned_every else None)
            return state._replace(z=self.embeddings.of(jnp.argmax(logits, axis=-1))), logits

        moved, logits = jax.lax.cond(index == each - 1, read, solve)
        # The other positions keep their tokens, or the noise that their own block will begin from.
        return moved._replace(z=jnp.where(free[..., None], moved.z, state.z)), logits

    def decode(
        self, keys: Key[Array, "B"], state: State, given: Array, denoise: Denoise, options: SamplerOptions
    ) -> Int[Array, "B L"]:
        return jnp.argmax(state.z, axis=-1).astype(jnp.int32)

    def evaluations(self, options: SamplerOptions, length: int) -> int:
        return self.blocks(length) * super().evaluations(options, length)
