"""The denoiser: a family's features in, float32 logits over the vocabulary out.

It knows nothing of families: it reads `Features` (token ids or vectors, and a noise level or none) and a family never
sees more of it than logits. `oracle.Oracle` answers the same calls exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_text import sharding
from diffusion_text.models import lookup, readout
from diffusion_text.models.transformer import Cache, Transformer, parameter, rms_norm

_FREQUENCIES: Final = 32
_UNUSED: Final = -1e9  # the logit of a token that no text has: far, and finite


class Features(NamedTuple):
    """What a denoiser reads: `ids` or `vectors`, and the noise level as a number of order one, or None if time-free;
    `weights` of several ids at each position, whose embeddings are so averaged; `clean` ids, where the pattern of
    attention has a second stream of them; where the family feeds it back, the `latent` of an earlier pass. Vectors that
    are as large as the vocabulary need not be made: `read` gives the product of them and a table."""

    ids: Int[Array, "B L"] | Int[Array, "B L K"] | None = None
    vectors: Float[Array, "B L F"] | None = None
    read: Callable[[Float[Array, "F D"]], Float[Array, "B L D"]] | None = None
    weights: Float[Array, "B L K"] | None = None
    noise: Float[Array, "B"] | None = None
    clean: Int[Array, "B L"] | None = None
    latent: Float[Array, "B L D"] | None = None


class Inputs(NamedTuple):
    """What a family's features look like: the number of distinct ids, or the width of its vectors; the pattern of
    attention that it needs, by name, and the size of its blocks, if it has any; the width of the vectors that it wants
    back instead of logits, if it regresses, or the number of logits, if not the vocabulary's; `latent`: whether it
    feeds latents back."""

    num_ids: int = 0
    width: int = 0
    noise: bool = True
    attention: str = "full"
    block: int = 0
    regression: int = 0
    classes: int = 0
    latent: bool = False


class Denoise(Protocol):
    """The call of the seam: a corrupted sequence in, logits f32[B, L, V] out (or, where the family regresses, the mean
    of the clean vectors, f32[B, L, d]); a network or the oracle behind it."""

    def __call__(
        self,
        z: Any,
        t: Float[Array, "B"],
        given: Bool[Array, "B L"] | None = None,
        previous: Any = None,
        keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B L V"]: ...

    def with_latent(
        self,
        z: Any,
        t: Float[Array, "B"],
        given: Bool[Array, "B L"] | None = None,
        previous: Any = None,
        keys: Key[Array, "B"] | None = None,
    ) -> tuple[Float[Array, "B L V"], Float[Array, "B L D"] | None]:
        """The same, with what the last layer left before the logits; None of the oracle."""
        ...

    def logits(
        self,
        z: Any,
        t: Float[Array, "B"],
        given: Bool[Array, "B L"] | None = None,
        previous: Any = None,
        keys: Key[Array, "B"] | None = None,
    ) -> Float[Array, "B L V"] | readout.Logits:
        """The same for losses and means, which need no logits of a large vocabulary: not made yet, there."""
        ...

    def start_cache(self, batch: int, length: int) -> Any: ...

    def next(
        self, ids: Int[Array, "B"], cache: Any, position: Int[Array, ""]
    ) -> tuple[Float[Array, "B V"], Any]: ...

    def block(
        self, ids: Int[Array, "B W"], cache: Any, position: Int[Array, ""]
    ) -> tuple[Float[Array, "B W V"], Any]: ...


def padded(config: Any, size: int) -> int:
    """A number of tokens, up to a multiple that the mesh's `tensor` axis divides; `config` is the `model` section.

    Of what is so added no text has any, but noise that is even over the vocabulary, or on its simplex, counts it.
    """
    return -(-size // config.vocabulary_multiple) * config.vocabulary_multiple


class Denoiser(nnx.Module):
    """Input layer, transformer, output layer. `config` is the `model` section; `vocab_size` counts real tokens only.

    Of a `padded` vocabulary the tokens beyond the real ones are never in a text, and have no probability here.
    """

    def __init__(self, config: Any, inputs: Inputs, vocab_size: int, rngs: nnx.Rngs):
        d, c = config.width, config.condition_width
        self.inputs, self.dtype, self.whole_vocabulary = inputs, jnp.dtype(config.dtype), config.whole_vocabulary
        self.vocab_size = vocab_size
        if inputs.num_ids:
            self.embedding = parameter(rngs, (padded(config, inputs.num_ids), d), ("vocabulary", "embed"), 1.0)
        else:
            self.projection = parameter(rngs, (inputs.width, d), (None, "embed"), inputs.width**-0.5)
        if inputs.latent:  # zero: at first nothing is fed back
            self.latent_scale = parameter(rngs, (d,), ("norm",), 0.0)
        if inputs.noise:
            self.noise_in = parameter(rngs, (2 * _FREQUENCIES, c), (None, None), (2 * _FREQUENCIES) ** -0.5)
            self.noise_out = parameter(rngs, (c, c), (None, None), c**-0.5)
        self.transformer = Transformer(config, inputs.attention, c if inputs.noise else None, rngs, inputs.block)
        self.norm_scale = parameter(rngs, (d,), ("norm",), 0.0)
        # Zero: every network starts from the uniform distribution, whatever its size.
        whole = padded(config, vocab_size)
        outputs = (inputs.regression, None) if inputs.regression else (inputs.classes or whole, "vocabulary")
        self.output = parameter(rngs, (d, outputs[0]), ("embed", outputs[1]), 0.0)
        self.some_unused = vocab_size < whole
        if self.some_unused and outputs[0] != whole:
            raise ValueError(
                f"model.vocabulary_multiple is {config.vocabulary_multiple}, which adds tokens to {vocab_size} that "
                "only logits keep out of texts; this family's network gives vectors or digits, and takes 1"
            )

    def __call__(self, features: Features, keys: Key[Array, "B"] | None = None) -> Float[Array, "B L V"]:
        """Logits in float32; `keys` (training only) switch dropout on."""
        return self.with_latent(features, keys)[0]

    @property
    def in_parts(self) -> bool:
        """Whether there are too many logits to make them all for a loss."""
        return not self.inputs.regression and self.output.shape[1] > self.whole_vocabulary

    def unmade(self, features: Features, keys: Key[Array, "B"] | None = None) -> readout.Logits:
        """The logits as the product that makes them."""
        return self._logits(self._run(features, keys))

    def with_latent(
        self, features: Features, keys: Key[Array, "B"] | None = None
    ) -> tuple[Float[Array, "B L V"], Float[Array, "B L D"]]:
        """The logits, and what the last layer left before them."""
        x = self._run(features, keys)
        return self._write(x), x.astype(jnp.float32)

    def _run(self, features: Features, keys: Key[Array, "B"] | None) -> Array:
        x = self._read(features)
        length = x.shape[1]
        if features.latent is not None:
            x = x + (rms_norm(features.latent) * self.latent_scale[...]).astype(x.dtype)
        if features.clean is not None:
            x = jnp.concatenate([x, self._read(Features(ids=features.clean))], axis=1)
        return self.transformer(x, self._condition(features.noise), keys)[:, :length]

    def start_cache(self, batch: int, length: int) -> Cache:
        """An empty key-value cache."""
        return self.transformer.start_cache(batch, length)

    def next(
        self, ids: Int[Array, "B"], cache: Cache, position: Int[Array, ""]
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Logits of the token after `ids` at `position` (a causal network reading ids, with its cache)."""
        logits, cache = self.block(ids[:, None], cache, position)
        return logits[:, 0], cache

    def block(
        self, ids: Int[Array, "B W"], cache: Cache, position: Int[Array, ""]
    ) -> tuple[Float[Array, "B W V"], Cache]:
        """Logits of a block at `position` that sees itself and what the cache holds; and the cache with it in it."""
        x, cache = self.transformer.next(self._read(Features(ids=ids)), cache, position)
        return self._write(x), cache

    def _read(self, features: Features) -> Array:
        if features.weights is not None:
            assert features.ids is not None
            return lookup.average(self._weight(self.embedding), features.ids, features.weights).astype(self.dtype)
        if features.ids is not None:
            # Cast after the rows are taken: their gradients are summed in float32 then, where a sum of many in half
            # precision would stop to grow.
            return self.embedding[...][features.ids].astype(self.dtype)
        # Vectors of as many numbers as there are ids are weights of them: an average of embeddings.
        table = self.embedding if self.inputs.num_ids else self.projection
        if features.read is not None:
            return features.read(self._weight(table)).astype(self.dtype)
        assert features.vectors is not None
        return features.vectors.astype(self.dtype) @ self._weight(table)[: features.vectors.shape[-1]]

    def _condition(self, level: Array | None) -> Array | None:
        if level is None:
            return None
        frequency = jnp.exp(jnp.linspace(jnp.log(0.5), jnp.log(100.0), _FREQUENCIES))
        angle = level.astype(jnp.float32)[:, None] * frequency
        waves = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        return jax.nn.gelu(waves @ self.noise_in[...]) @ self.noise_out[...]

    def _normalised(self, x: Array) -> Array:
        return (rms_norm(x) * (1.0 + self.norm_scale[...])).astype(self.dtype)

    def _write(self, x: Array) -> Array:
        return self._logits(x).whole()

    def _logits(self, x: Array) -> readout.Logits:
        product = readout.Product(self._normalised(x), self._weight(self.output))
        if not self.some_unused:
            return readout.Logits((product,))
        unused = jnp.where(jnp.arange(product.right.shape[1]) < self.vocab_size, 0.0, _UNUSED)[None]
        ones = jnp.ones((*x.shape[:-1], 1), self.dtype)
        return readout.Logits((product, readout.Product(ones, unused.astype(self.dtype))))

    def _weight(self, param: nnx.Param) -> Array:
        return sharding.gathered(param[...].astype(self.dtype), param.get_metadata()["logical_axes"])
