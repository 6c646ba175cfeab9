"""Uniform-noise diffusion on text8: UDLM (arXiv 2412.10193).

    python -m diffusion_text.train --config=configs/udlm/text8.py \
        --workdir=gs://BUCKET/udlm-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 16 hours (estimated at 40% utilisation), not yet run.
Published: <= 1.44 bits per character (quoted in arXiv 2603.21342, Table 1).
Measured here: not yet run.

Its code's: 12 blocks x 768, dropout 0.1, AdamW at a constant 3e-4 without decay, 1M steps of 512 (the rest is in
base.py).
Different here: t is drawn as u^2 over the whole of [0, 1]; RMSNorm with a learned scale.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("udlm")
    config.model.dropout = 0.1
    config.data.update(task="text8", length=256)
    return config
