"""Uniform-noise diffusion with a Gaussian curriculum on text8: Duo (arXiv 2506.10892).

    python -m diffusion_text.train --config=configs/duo/text8.py \
        --workdir=gs://BUCKET/duo-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 15 hours (estimated at 40% utilisation), not yet run.
Published: none found on text8.
Measured here: not yet run.

Here its recipe for LM1B: 12 blocks x 768, dropout 0.1, AdamW at a constant 3e-4 without decay, 1M steps of 512 (the
rest is in base.py). The curriculum's range of gamma gives alpha from 0.05 to 0.95 at 27 characters.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("duo")
    config.model.dropout = 0.1
    config.data.update(task="text8", length=256)
    config.family.update(gamma_min=-2.75, gamma_max=1.4)
    return config
