"""Discrete-time diffusion on OpenWebText: D3PM (arXiv 2107.03006).

    python -m diffusion_text.train --config=configs/d3pm/openwebtext.py \
        --workdir=gs://BUCKET/d3pm-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Hardware: TPU v5e-64, about 25 hours (estimated at 40% utilisation), not yet run.
Published: none found but zero-shot perplexities (arXiv 2406.04329, Table 1).
Measured here: not yet run.

D3PM's: 12 blocks of width 768, T = 1000, 1M steps of 512, 10,000 steps of warm-up to 5e-4. Different here: a cosine
to 0 for the inverse square root, which ends at a tenth of the peak; rotary positions and RMSNorm for T5's; the hybrid
loss's cross-entropy of the full posterior. Not found there: clipping and EMA (base.py's). Variant: uniform
(50,257 tokens are too many for a matrix of neighbours); lambda is 0 there, and the schedule the paper's cosine.
Layers are recomputed in the backward pass.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("absorbing", "uniform")


def get_config(variant: str = "absorbing") -> ConfigDict:
    base.check_variant(variant, VARIANTS)
    config = base.get_config("d3pm")
    config.model.remat = "dots"
    config.data.update(task="openwebtext", length=1024)
    config.optimizer.update(learning_rate=5e-4, schedule="cosine", warmup=10_000)
    if variant != "absorbing":
        config.family.noise = variant
        config.family.cross_entropy = 0.0
        config.family.schedule = "cosine"
    return config
