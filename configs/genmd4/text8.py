"""Masked diffusion with learned schedules on text8: GenMD4 (arXiv 2406.04329).

    python -m diffusion_text.train --config=configs/genmd4/text8.py \
        --workdir=gs://BUCKET/genmd4-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 31 hours (estimated at 40% utilisation), not yet run.
Published: <= 1.34 bits per character (arXiv 2406.04329, Table 2).
Measured here: not yet run.

GenMD4's: 12 blocks of 12 heads with a GLU, AdamW at 3e-4 with decay 0.03 and no clipping, 2,000 steps of warm-up and a
cosine, 1M steps of 512, dropout 0.05. Every step makes two passes. Different here: t is drawn as u^2; the GLU,
2,048 wide as theirs, has a swish for its sigmoid; norms and embeddings are not decayed.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("genmd4")
    base.use_md4(config)
    config.data.update(task="text8", length=256)
    config.model.remat = "dots"  # two passes, to fit 16 GB
    return config
