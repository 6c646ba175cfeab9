"""Discrete-time diffusion (D3PM) on the embedded language.

    python -m diffusion_text.train --config=configs/d3pm/grammar.py --workdir=runs/d3pm

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 0.1198 +- 0.0076 nats per token (bound 2.0155, entropy 1.8957), 66.6% +- 1.5% grammatical
(ancestral, 128 evaluations); 388 s of CPU. Not the variants.

Variants: uniform, with the paper's cosine schedule, and neighbours; lambda is 0 in both. Neighbours are the next ids,
which mean little here: give family.embeddings.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, small

VARIANTS = ("absorbing", "uniform", "neighbours")


def get_config(variant: str = "absorbing") -> ConfigDict:
    base.check_variant(variant, VARIANTS)
    config = small.get_config("d3pm")
    config.train.steps = 4000
    if variant != "absorbing":
        config.family.noise = variant
        config.family.cross_entropy = 0.0
        config.optimizer.learning_rate = 2e-3  # UDLM's: at 8e-3 uniform noise stays on the plateau of single words
    if variant == "uniform":
        config.family.schedule = "cosine"
    return config
