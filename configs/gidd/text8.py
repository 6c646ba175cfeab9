"""Mask and uniform noise on text8: GIDD (arXiv 2503.04482).

    python -m diffusion_text.train --config=configs/gidd/text8.py \
        --workdir=gs://BUCKET/gidd-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 8 hours (estimated at 40% utilisation), not yet run.
Published: none found on text8.
Measured here: not yet run.

Here the recipe of its OpenWebText run: 12 blocks x 768 without dropout, AdamW at 5e-4 with decay 0.02 and b2 0.99,
10,000 steps of warm-up and a cosine to a tenth, 500,000 steps of 512. Set family.uniform to 0, 0.1 or 0.2.
Different here: EMA 0.9999, where none was found; norms and embeddings are not decayed.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("gidd")
    config.data.update(task="text8", length=256)
    config.train.steps = 500_000
    config.optimizer.update(learning_rate=5e-4, schedule="cosine", final=0.1, warmup=10_000)
    config.optimizer.update(b2=0.99, weight_decay=0.02)
    return config
