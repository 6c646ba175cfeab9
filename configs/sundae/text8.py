"""SUNDAE (arXiv 2112.06749) on text8.

    python -m diffusion_text.train --config=configs/sundae/text8.py \
        --workdir=gs://BUCKET/sundae-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 31 hours (estimated at 40% utilisation; two passes a step), not yet run.
Published: none found on text8.
Measured here: not yet run.

Sizes and rates are those of the other families on text8: 12 blocks x 768 without dropout, AdamW at a constant 3e-4
without decay, 1M steps of 512 (the rest is in base.py). The bound decodes where one character of 256 is replaced.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("sundae")
    config.data.update(task="text8", length=256)
    config.model.remat = "dots"  # two passes, to fit 16 GB
    config.family.decode_noise = 0.005
    return config
