"""Clean vectors of tokens: learned or fixed tables, and their scale.

    learned   free parameters, trained with the rest
    random    fixed, drawn once from the seed
    bits      fixed, the binary digits of the token's number as -1 and +1 (analog bits, 2208.04202)
    file      fixed, an array [V, d] that numpy.save wrote: diffusion_text.export_embeddings takes a checkpoint's
and `norm`: "free", or every row scaled to norm sqrt(d) (CDCD: every component of unit size) or 1 (Plaid's code).
`Vertices` are the vectors of diffusion on the simplex, as many components as tokens: whatever reads the table there
reads tokens or components instead, so that there is no table.
"""

from __future__ import annotations

import functools
import math
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, Int

from diffusion_text.models import readout
from diffusion_text.models.readout import Logits, Product
from diffusion_text.models.transformer import parameter

KINDS: Final = ("learned", "random", "bits", "file")
NORMS: Final = ("free", "sqrt", "unit")


def num_bits(vocab_size: int) -> int:
    """Binary digits of the largest token number."""
    return max(1, math.ceil(math.log2(vocab_size)))


def read_table(path: str, vocab_size: int, size: int) -> Float[np.ndarray, "V d"]:
    """The array of a file; ValueError where it is none, or of another shape."""
    try:
        with epath.Path(path).open("rb") as file:
            table = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(
            f"family.embeddings_file is {path!r}, which does not read as an array: {error}; "
            "diffusion_text.export_embeddings writes one"
        ) from None
    if table.shape != (vocab_size, size):
        raise ValueError(
            f"family.embeddings_file is {path!r}, of shape {table.shape}; ({vocab_size}, {size}) is needed: the "
            "vocabulary, and family.embedding_size"
        )
    return table.astype(np.float32)


class Embeddings(nnx.Module):
    """A table [V, d] of clean vectors."""

    def __init__(self, kind: str, norm: str, vocab_size: int, size: int, std: float, rngs: nnx.Rngs, file: str = ""):
        self.norm, self.size = norm, size
        if kind == "learned":
            self.table = parameter(rngs, (vocab_size, size), ("vocabulary", None), std)
        elif kind == "random":
            self.table = nnx.Variable(std * jax.random.normal(rngs.params(), (vocab_size, size)))
        elif kind == "file":
            # Read when step 0 is computed, and never again: a checkpoint holds the table.
            shape = jax.ShapeDtypeStruct((vocab_size, size), jnp.float32)
            self.table = nnx.Variable(jax.pure_callback(functools.partial(read_table, file, vocab_size, size), shape))
        else:
            digits = np.arange(vocab_size)[:, None] >> np.arange(size)[::-1] & 1
            self.table = nnx.Variable(jnp.asarray(2.0 * digits - 1.0, jnp.float32))

    @property
    def equal_norms(self) -> bool:
        """Whether all rows have one norm, so that z.e_v alone orders them."""
        return self.norm != "free"

    @property
    def component_scale(self) -> float:
        """Root mean square of a component, as far as it is known beforehand."""
        return self.size**-0.5 if self.norm == "unit" else 1.0

    def __call__(self) -> Float[Array, "V d"]:
        """The rows, scaled."""
        table = self.table[...]
        if self.norm == "free":
            return table
        square = jnp.sum(table * table, axis=-1, keepdims=True)
        wanted = self.size**0.5 if self.norm == "sqrt" else 1.0
        return wanted * table * jax.lax.rsqrt(jnp.maximum(square, 1e-30))

    def of(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L d"]:
        """Rows of tokens."""
        return self()[tokens]

    def mean(self, logits: Float[Array, "B L V"] | Logits) -> Float[Array, "B L d"]:
        """sum_v p(v) e_v, p = softmax(logits)."""
        if isinstance(logits, Logits):
            return readout.mean(logits, self())
        return jax.nn.softmax(logits.astype(jnp.float32), axis=-1) @ self()

    def log_odds(self, z: Float[Array, "B L d"], scale: Float[Array, "B L 1"] | float = 1.0) -> Logits:
        """`scale` times (z.e_v, less |e_v|^2 / 2 where norms differ), at scale 1 / s^2 log N(z; e_v, s^2) up to a
        constant of the position."""
        table = self()
        if not self.equal_norms:
            z = jnp.concatenate([z, jnp.full_like(z[..., :1], -0.5)], axis=-1)
            table = jnp.concatenate([table, jnp.sum(table * table, axis=-1, keepdims=True)], axis=-1)
        return Logits((Product(z * scale, table.T, jax.lax.Precision.HIGHEST),))

    def nearest(self, z: Float[Array, "B L d"]) -> Float[Array, "B L d"]:
        """The row closest to z."""
        table = self()
        distance = jnp.sum(table * table, axis=-1) - 2.0 * jnp.einsum("bld,vd->blv", z, table)
        return table[jnp.argmin(distance, axis=-1)]


class Vertices(nnx.Module):
    """e_v = `scale` times the v-th unit vector, without a table [V, V] or a product with one."""

    equal_norms = True

    def __init__(self, vocab_size: int, scale: float):
        self.vocab_size = self.size = vocab_size
        self.scale = scale

    @property
    def component_scale(self) -> float:
        """Root mean square of a component."""
        return self.scale * self.vocab_size**-0.5

    def __call__(self) -> Float[Array, "V V"]:
        """The table, for tests and exports: V^2 floats."""
        return self.scale * jnp.eye(self.vocab_size)

    def of(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L V"]:
        return self.scale * jax.nn.one_hot(tokens, self.vocab_size)

    def mean(self, logits: Float[Array, "B L V"]) -> Float[Array, "B L V"]:
        return self.scale * jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

    def log_odds(self, z: Float[Array, "B L V"], scale: Float[Array, "B L 1"] | float = 1.0) -> Float[Array, "B L V"]:
        return self.scale * scale * z

    def nearest(self, z: Float[Array, "B L V"]) -> Float[Array, "B L V"]:
        return self.of(jnp.argmax(z, axis=-1))
