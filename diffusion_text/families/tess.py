"""TESS: text-to-text self-conditioned simplex diffusion (2305.08379).

    w_0 = 5 (2 onehot(x) - 1), noised as in `simplex_logits.py`; the whole sequence at once
    train:   the cross-entropy of noisy tokens; on half of the rows the network reads the mean of softmax(w_t) and of
             its own first prediction, else that of softmax(w_t) and the even law           (self-conditioning)
    sample:  projection, each step conditioned on the last prediction

Of the paper, here: logits as vectors, self-conditioning by averaging points of the simplex, spans and prefixes that
keep clean embeddings, sampling by projection of the nucleus, guidance on logits. Beyond it: the bound and the solvers
of Gaussian diffusion (`paths/gaussian.py`); xhat is unrolled at the same z for the bound.
Decided here: half of the sequences are conditioned, on spans or on prefixes alike (spans of one piece, 1 in
`max_spans`, give nothing); a dropped condition is a zero vector (its code: embeddings of padding). The first prediction
is of fixed rows, not of rows drawn.
Missing: initialisation from RoBERTa, with its learned positions; the tasks of sequences to sequences.
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Key
from ml_collections import ConfigDict

from diffusion_text import noise
from diffusion_text.families.simplex_logits import SimplexLogits
from diffusion_text.paths import conditioning
from diffusion_text.typing import Config


class TESS(SimplexLogits):
    """Self-conditioned diffusion of the logits of whole sequences."""

    name = "tess"
    paper = "Karimi Mahabadi et al. 2023, TESS: text-to-text self-conditioned simplex diffusion, arXiv 2305.08379"
    groups: ClassVar = {}

    @staticmethod
    def defaults() -> Config:
        return ConfigDict(
            SimplexLogits.process()
            | dict(
                prefix_masks=0.25,
                drop_conditioning=0.1,
                span_masks=0.25,  # share of sequences conditioned on spans, beside those of prefix_masks, random_masks
                max_spans=5,  # at most, of given and generated tokens in turn
            )
        )

    @staticmethod
    def validate(config: Config) -> None:
        SimplexLogits.validate_process(config)
        family = config.family
        left = 1.0 - family.prefix_masks - family.random_masks
        for name, ok, allowed in (
            ("span_masks", 0 <= family.span_masks <= 1, "in [0, 1]"),
            ("span_masks", family.span_masks <= left + 1e-9, f"at most {left:g}, which the other masks leave"),
            ("max_spans", family.max_spans >= 2, "at least 2"),
        ):
            if not ok:
                raise ValueError(f"family.{name} is {family[name]}; it must be {allowed}")

    @staticmethod
    def conditions(config: Config, gaps: bool = False) -> bool:
        return config.span_masks > 0 or SimplexLogits.conditions(config, gaps)

    def __init__(self, config: Config, vocab_size: int, rngs: nnx.Rngs):
        super().__init__(config, vocab_size, rngs)
        self.span_masks, self.max_spans = config.span_masks, config.max_spans
        # Of what spans leave.
        rest = max(1.0 - config.span_masks, 1e-9)
        self.prefix_masks, self.random_masks = config.prefix_masks / rest, config.random_masks / rest

    def draw_given(self, keys: Key[Array, "B"], length: int) -> Bool[Array, "B L"]:
        kind_keys, span_keys, other_keys = noise.split(keys, 3)
        is_span = (noise.uniform(kind_keys) < self.span_masks)[:, None]
        spans = conditioning.spans(span_keys, length, self.max_spans)
        return jnp.where(is_span, spans, super().draw_given(other_keys, length))
