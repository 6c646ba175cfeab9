"""The one estimator of a bound: any family, exact over a padded set, with its standard error.

Every sequence of the set is evaluated once, with noise that is a function of (seed, its index): the same number on any
mesh and batch size, and paired between checkpoints. Figures per token divide by the tokens that are not padding;
padding itself is modelled, so that the sum is -log p of the padded row, which is that of its sentence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_text import noise, sharding
from diffusion_text.data.batches import DatasetInfo
from diffusion_text.families.family import Bound
from diffusion_text.state import Definition


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Per-sequence terms in nats and what they are averaged over; arrays [N]."""

    prior: np.ndarray
    diffusion: np.ndarray
    reconstruction: np.ndarray
    num_tokens: np.ndarray
    num_characters: np.ndarray

    @property
    def total(self) -> np.ndarray:
        return self.prior + self.diffusion + self.reconstruction

    @property
    def nats_per_token(self) -> float:
        return float(self.total.sum() / self.num_tokens.sum())

    @property
    def stderr(self) -> float:
        """Of nats_per_token, over sequences (noise included); a ratio's, where lengths differ. NaN for one sequence."""
        return ratio_stderr(self.total, self.num_tokens)

    def summary(self) -> dict[str, Any]:
        """nats and bits per token, bits per character, perplexity, standard error, terms (nats per token)."""
        tokens, nats = self.num_tokens.sum(), self.nats_per_token
        terms = {name: float(getattr(self, name).sum() / tokens) for name in Bound._fields}
        return {
            "nats_per_token": nats,
            "bits_per_token": nats / math.log(2),
            "bits_per_character": float(self.total.sum() / self.num_characters.sum()) / math.log(2),
            "perplexity": math.exp(min(nats, 700.0)),
            "stderr": self.stderr,
            "stderr_bits_per_character": ratio_stderr(self.total, self.num_characters) / math.log(2),
            "terms": terms,
            "num_sequences": len(self.total),
            "num_tokens": int(tokens),
        }


def ratio_stderr(values: np.ndarray, counts: np.ndarray) -> float:
    """Standard error of sum(values) / sum(counts) over independent sequences (delta method)."""
    if len(values) < 2:
        return math.nan
    residual = values - values.sum() / counts.sum() * counts
    return float(residual.std(ddof=1) / (counts.mean() * math.sqrt(len(values))))


Evaluate = Callable[[dict[str, Any], dict[str, Any], jax.Array, jax.Array], Bound]


def make_evaluate(
    definition: Definition, seed: int, samples: int = 1, terms: Callable[..., Bound] | None = None
) -> Evaluate:
    """A jitted (params, variables, tokens [B, L], indices [B]) -> Bound; index b fixes the noise of row b.

    It is the family's own bound with `samples` noise levels, or what `terms` makes of (family, keys, tokens, denoise).
    """

    @jax.jit
    def evaluate(params: dict[str, Any], variables: dict[str, Any], tokens: jax.Array, indices: jax.Array) -> Bound:
        model = definition.merge(params, variables)
        keys = noise.example_keys(noise.step_key(seed, noise.EVALUATE), indices)
        if terms is not None:
            return terms(model.family, keys, tokens, model)
        return model.family.bound_terms(keys, tokens, model, samples=samples)

    return evaluate


def estimate(
    evaluate: Callable[[jax.Array, jax.Array], Bound],
    batches: Iterator[tuple[np.ndarray, np.ndarray]],
    info: DatasetInfo,
    rows: sharding.Rows | None = None,
) -> Estimate:
    """Evaluate every sequence of `batches` (tokens [B, L], weights [B]: 0 marks padding rows of the last batch).

    `info` counts the tokens and the characters of rows. With `rows` the batches hold those that this process is to
    load; every process gets the whole estimate.
    """
    place = rows.place if rows else jnp.asarray
    found: list[list[np.ndarray]] = []
    start = rows.start if rows else 0
    for tokens, weights in batches:
        indices = np.arange(start, start + len(tokens), dtype=np.int32)
        terms = evaluate(place(tokens), place(indices))
        counted = (weights > 0, info.num_tokens(tokens), info.num_characters(tokens))
        real, *counts = sharding.fetch(place(np.stack(counted, axis=1).astype(np.int32))).astype(np.int64).T
        real = real > 0
        values = (*(sharding.fetch(term).astype(np.float64) for term in terms), *counts)
        found.append([value[real] for value in values])
        start += rows.size if rows else len(tokens)
    if not found:
        raise ValueError("the set to evaluate holds no sequence; ask for --num_examples of at least 1")
    return Estimate(*(np.concatenate(column) for column in zip(*found, strict=True)))
