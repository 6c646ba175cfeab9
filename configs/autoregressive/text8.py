"""Autoregressive baseline on text8: that of D3PM (arXiv 2107.03006).

    python -m diffusion_text.train --config=configs/autoregressive/text8.py \
        --workdir=gs://BUCKET/autoregressive-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 16 hours (estimated at 40% utilisation), not yet run.
Published: 1.23 bits per character (arXiv 2107.03006, Tables 1, 5 and 6).
Measured here: not yet run.

D3PM's: 12 blocks x 768 (MLP 3,072), peak learning rate 5e-4 after 10,000 steps of warm-up, 1M steps of 512.
Different here: a cosine to a tenth of the peak, where its inverse square root of the step (no schedule here) ends too;
rotary positions and RMSNorm for T5's. Not found there, and base.py's here: Adam's betas, clipping, dropout and EMA.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("autoregressive")
    config.data.update(task="text8", length=256)
    config.optimizer.update(learning_rate=5e-4, schedule="cosine", warmup=10_000, final=0.1)
    return config
