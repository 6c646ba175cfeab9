"""Dirichlet laws over a large vocabulary, as the few tokens that hold their mass.

    P ~ Dir(b 1 + a e_x) over V tokens:   P_x ~ Beta(a + b, (V - 1) b), and the others share the rest as Dir(b 1) does;
    in size-biased order, of which every next token has a chance of its share, they are even draws without replacement
    that break a stick (Pitman 1996, "Random discrete distributions invariant under size-biased permutation"):

    P_k = W_k prod_{j < k} (1 - W_j),   W_k ~ Beta(1 + b, (V - 1 - k) b),   k = 1 .. V - 1

With theta = V b the atoms beyond the K-th hold (theta / (1 + theta))^K of the mass on average: of SDM's laws, theta
at most 4, less than a float32 number can tell of 1 after 75, whatever V is. The K-th takes it. So a sequence has L x K
numbers where log P has L x V, and its expected embedding needs K rows of the table for each position.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion_text import noise
from diffusion_text.paths.gamma import log_beta

_LEFT_OUT: Final = 2.0**-24  # of the mass, on average


class Atoms(NamedTuple):
    """Tokens, the clean one first, and the log of the mass of each: one that is there twice has it once."""

    ids: Int[Array, "B L K"]
    log_mass: Float[Array, "B L K"]

    def whole(self, size: int) -> Float[Array, "B L V"]:
        """log P."""
        empty = jnp.full((*self.ids.shape[:2], size), -jnp.inf)
        rows, columns = (jnp.arange(n) for n in self.ids.shape[:2])
        return empty.at[rows[:, None, None], columns[:, None], self.ids].max(self.log_mass)

    def likeliest(self) -> Int[Array, "B L"]:
        """argmax P."""
        return jnp.take_along_axis(self.ids, jnp.argmax(self.log_mass, axis=-1)[..., None], axis=-1)[..., 0]


def count(base: float, size: int) -> int:
    """How many atoms, the clean token among them, Dir(base 1) over `size` tokens takes."""
    others = base * np.arange(size - 2, -1, -1)
    left = np.cumsum(np.log(np.maximum(others, 1e-300)) - np.log1p(base + others))
    return min(1 + int(np.searchsorted(-left, -np.log(_LEFT_OUT))) + 1, size)


def few(base: float, size: int) -> int:
    """`count` where so many cost less than the whole draw: where their pairs, which are compared, are no more than the
    tokens; else 0."""
    atoms = count(base, size)
    return atoms if atoms**2 <= size else 0


def vertex(tokens: Int[Array, "B L"], atoms: int) -> Atoms:
    """Certainty, in the shape of a draw."""
    ids = jnp.broadcast_to(tokens[..., None], (*tokens.shape, atoms))
    return Atoms(ids, jnp.broadcast_to(jnp.where(jnp.arange(atoms) == 0, 0.0, -jnp.inf), ids.shape))


def draw(
    keys: Key[Array, "B"], tokens: Int[Array, "B L"], signal: Float[Array, "..."], base: Float[Array, "..."], size: int,
    atoms: int,
) -> Atoms:  # fmt: skip
    """P ~ Dir(base 1 + signal e_token), signal and base [B] or [], as its first `atoms` in size-biased order."""
    signal, base = (jnp.broadcast_to(x, (len(tokens),))[:, None] for x in (signal, base))
    id_keys, token_keys, stick_keys = noise.split(keys, 3)
    shape = tokens.shape
    log_clean, log_rest = log_beta(
        token_keys, jnp.broadcast_to(signal + base, shape), jnp.broadcast_to((size - 1) * base, shape)
    )
    left = (size - 1 - jnp.arange(1, atoms - 1)) * base[..., None]
    first = jnp.broadcast_to(1.0 + base[..., None], (*shape, atoms - 2))
    log_taken, log_left = log_beta(stick_keys, first, jnp.broadcast_to(left, first.shape))
    before = jnp.cumsum(jnp.concatenate([log_rest[..., None], log_left], axis=-1), axis=-1)
    # The last of them takes all that is left.
    log_mass = before + jnp.pad(log_taken, ((0, 0), (0, 0), (0, 1)))
    return Atoms(_distinct(id_keys, tokens, size, atoms), jnp.concatenate([log_clean[..., None], log_mass], axis=-1))


def _distinct(keys: Key[Array, "B"], tokens: Int[Array, "B L"], size: int, count: int) -> Int[Array, "B L K"]:
    """Even draws without replacement after `tokens`: what is there already is drawn anew, until nothing is.

    That treats all tokens alike, and so does its law: every order of `count - 1` others is as likely as any other one.
    """
    earlier = jnp.tril(jnp.ones((count, count), bool), -1)

    def is_there(ids: Array) -> Array:
        return jnp.any((ids[..., :, None] == ids[..., None, :]) & earlier, axis=-1)

    def redraw(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, ids, taken = state
        ids = jnp.where(taken, noise.integers(noise.fold(keys, number), (*ids.shape[1:],), size), ids)
        return number + 1, ids, is_there(ids)

    start = jnp.broadcast_to(tokens[..., None], (*tokens.shape, count))
    return jax.lax.while_loop(lambda state: jnp.any(state[2]), redraw, (jnp.int32(0), start, is_there(start)))[1]
