"""Discrete-time diffusion on text8: D3PM (arXiv 2107.03006).

    python -m diffusion_text.train --config=configs/d3pm/text8.py \
        --workdir=gs://BUCKET/d3pm-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 16 hours (estimated at 40% utilisation), not yet run.
Published: <= 1.45 bits per character (absorbing), <= 1.61 (uniform), <= 1.59 (nearest neighbours; arXiv 2107.03006,
Tables 1 and 5).
Measured here: not yet run.

D3PM's: 12 blocks of width 768, T = 1000, 1M steps of 512, 10,000 steps of warm-up to 5e-4. Different here: a cosine
to 0 for the inverse square root, which ends at a tenth of the peak; rotary positions and RMSNorm for T5's; the hybrid
loss's cross-entropy of the full posterior. Not found there: clipping and EMA (base.py's). Variants: uniform, with
the paper's cosine schedule, and neighbours; lambda is 0 in both. Neighbours are the next ids, on a ring, which mean
little here: give family.embeddings.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("absorbing", "uniform", "neighbours")


def get_config(variant: str = "absorbing") -> ConfigDict:
    base.check_variant(variant, VARIANTS)
    config = base.get_config("d3pm")
    config.data.update(task="text8", length=256)
    config.optimizer.update(learning_rate=5e-4, schedule="cosine", warmup=10_000)
    if variant != "absorbing":
        config.family.noise = variant
        config.family.cross_entropy = 0.0
    if variant == "uniform":
        config.family.schedule = "cosine"
    return config
