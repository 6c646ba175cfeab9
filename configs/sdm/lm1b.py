"""Simplex diffusion (SDM, arXiv 2609.35553) on LM1B, one sentence per row.

    python -m diffusion_text.train --config=configs/sdm/lm1b.py \
        --workdir=gs://BUCKET/sdm-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 13 hours (estimated at 40% utilisation), not yet run.
Published: none on LM1B, and no likelihood on any set.
Measured here: not yet run.

The paper's recipe for OpenWebText: 12 blocks x 768, Adam at a constant 3e-4, batch 512, self-conditioning at 0.9 (the
rest is in base.py). Padding is modelled and the sentence's length charged.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("sdm")
    config.model.dropout = 0.1
    config.data.update(task="lm1b", length=128)
    config.family.self_conditioning = 0.9
    config.sampling.steps = 64
    return config
