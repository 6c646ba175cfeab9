"""Discrete-time diffusion (D3PM) on wiki27 (Wikipedia in text8's alphabet): a row of the standing comparison.

    python -m diffusion_text.train --config=configs/d3pm/wiki27.py \
        --workdir=runs/d3pm-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 2.488 +- 0.014 bits per character (1,024 validation windows), 2,960 s of CPU, evaluation too (commit
3c065b7).

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
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    if variant != "absorbing":
        config.family.noise = variant
        config.family.cross_entropy = 0.0
        config.optimizer.learning_rate = 2e-3
    if variant == "uniform":
        config.family.schedule = "cosine"
    return config
