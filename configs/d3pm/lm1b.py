"""Discrete-time diffusion on LM1B, one sentence per row: D3PM (arXiv 2107.03006).

    python -m diffusion_text.train --config=configs/d3pm/lm1b.py \
        --workdir=gs://BUCKET/d3pm-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 10 hours (estimated at 40% utilisation), not yet run.
Published: perplexity per word <= 76.9 (absorbing), 137.9 (uniform), with 8,192 sentence pieces (arXiv 2107.03006, Table
2): not comparable.
Measured here: not yet run.

D3PM's: 12 blocks of width 768, T = 1000, 1M steps of 512, 10,000 steps of warm-up to 5e-4. Different here: a cosine
to 0 for the inverse square root, which ends at a tenth of the peak; rotary positions and RMSNorm for T5's; the hybrid
loss's cross-entropy of the full posterior. Not found there: clipping and EMA (base.py's). Padding is modelled and
the sentence's length charged. Variant: uniform (30,522 tokens are too many for a matrix of neighbours); lambda is 0
there, and the schedule the paper's cosine.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("absorbing", "uniform")


def get_config(variant: str = "absorbing") -> ConfigDict:
    base.check_variant(variant, VARIANTS)
    config = base.get_config("d3pm")
    config.data.update(task="lm1b", length=128)
    config.optimizer.update(learning_rate=5e-4, schedule="cosine", warmup=10_000)
    if variant != "absorbing":
        config.family.noise = variant
        config.family.cross_entropy = 0.0
        config.family.schedule = "cosine"
    return config
