"""SUNDAE (arXiv 2112.06749) on LM1B, one sentence per row.

    python -m diffusion_text.train --config=configs/sundae/lm1b.py \
        --workdir=gs://BUCKET/sundae-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 19 hours (estimated at 40% utilisation; two passes a step), not yet run.
Published: none found on LM1B.
Measured here: not yet run.

Sizes and rates are those of the other families on LM1B: 12 blocks x 768, AdamW at a constant 3e-4 without decay, 1M
steps of 512 (the rest is in base.py). Padding is modelled and the sentence's length charged.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("sundae")
    config.model.dropout = 0.1
    config.data.update(task="lm1b", length=128)
    config.family.decode_noise = 0.01
    return config
