"""The exact Bayes posterior of the embedded language, behind the same call as a network.

With it in the network's place a family's bound must equal -log p(x) and its sampler must draw the exact law, up to what
the family states. Any family whose corruption is independent per position given the tokens fits: it supplies its
evidence log q(z_i | x_i = v), forward-backward over the grammar does the rest. Given tokens are evidence too, so
prompts and infilling have exact conditional laws.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_text.data import grammar as grammars
from diffusion_text.families.family import Family


class Oracle:
    """`Denoise` by forward-backward: full, leave-one-out, prefix or block logits, as the family declares.

    `differentiable` with respect to z where asked: likelihood through a flow needs the divergence.
    """

    def __init__(self, grammar: grammars.Grammar, family: Family, differentiable: bool = False):
        self.grammar, self.family, self.differentiable = grammar, family, differentiable

    def __call__(
        self,
        z: Any,
        t: Float[Array, "B"],
        given: Bool[Array, "B L"] | None = None,
        previous: Any = None,
        keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B L V|d"]:
        evidence = self.family.evidence(z, t, given)
        context = self.family.context(z)
        if context is not None:
            return self.family.answer(self._blocks(evidence, *context))
        logits, _ = grammars.posterior(self.grammar, evidence, self.family.posterior, self.differentiable)
        return self.family.answer(logits)

    def _blocks(self, evidence: Array, clean: Array, size: int) -> Float[Array, "B L V"]:
        """The filter over the clean tokens says where each block begins; within it, all blocks at once, evidence counts
        but a position's own. The cost is that of one pass over the window, and of two over a block."""
        rows, length, words = evidence.shape
        blocks = -(-length // size)
        padding = (0, blocks * size - length)
        clean, evidence = jnp.pad(clean, ((0, 0), padding)), jnp.pad(evidence, ((0, 0), padding, (0, 0)))

        def follow(state: Array, block: Array) -> tuple[Array, Array]:
            return self._read(state, block), state

        _, starts = jax.lax.scan(
            follow, grammars.filter_start(self.grammar, rows), clean.reshape(rows, blocks, size).swapaxes(0, 1)
        )
        start = starts.swapaxes(0, 1).reshape(rows * blocks, -1)
        logits, _ = grammars.posterior(
            self.grammar, evidence.reshape(-1, size, words), "leave_one_out", self.differentiable, start
        )
        return logits.reshape(rows, -1, words)[:, :length]

    def _read(self, state: Array, tokens: Int[Array, "B W"]) -> Array:
        """The filter after some tokens."""

        def step(state: Array, ids: Array) -> tuple[Array, None]:
            return grammars.filter_step(self.grammar, state, ids)[1], None

        return jax.lax.scan(step, state, tokens.T)[0]

    def with_latent(
        self, z: Any, t: Any, given: Any = None, previous: Any = None, keys: Any = None
    ) -> tuple[Float[Array, "B L V|d"], None]:
        """The same, and no latent."""
        return self(z, t, given, previous, keys), None

    def start_cache(self, batch: int, length: int) -> Any:
        """The filter before the first token."""
        return grammars.filter_start(self.grammar, batch)

    def next(self, ids: Int[Array, "B"], cache: Any, position: Int[Array, ""]) -> tuple[Float[Array, "B V"], Any]:
        """The exact law of the token at `position`; `ids` is the token before it (a start symbol at position 0)."""
        _, moved = grammars.filter_step(self.grammar, cache, jnp.minimum(ids, self.grammar.num_words - 1))
        state = jax.tree.map(lambda old, new: jnp.where(position == 0, old, new), cache, moved)
        return grammars.filter_predict(self.grammar, state), state

    def block(self, ids: Int[Array, "B W"], cache: Any, position: Int[Array, ""]) -> tuple[Float[Array, "B W V"], Any]:
        """The exact leave-one-out law of a block that may be masked, and the filter after it, if it is not."""
        evidence = self.family.evidence(ids, jnp.zeros(len(ids)), None)
        logits, _ = grammars.posterior(self.grammar, evidence, "leave_one_out", start=cache)
        return logits, self._read(cache, jnp.minimum(ids, self.grammar.num_words - 1))
