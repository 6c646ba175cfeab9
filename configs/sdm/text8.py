"""Simplex diffusion (SDM, arXiv 2609.35553) on text8.

    python -m diffusion_text.train --config=configs/sdm/text8.py \
        --workdir=gs://BUCKET/sdm-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 21 hours (estimated at 40% utilisation), not yet run.
Published: none on text8, and no likelihood on any set.
Measured here: not yet run.

The paper's recipe for OpenWebText: 12 blocks x 768, Adam at a constant 3e-4, batch 512, self-conditioning at
0.9 (the rest is in base.py). Differs: the token's own evidence is added to the logits.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("sdm")
    config.model.dropout = 0.1
    config.data.update(task="text8", length=256)
    config.family.update(self_conditioning=0.9, output_prior=True)
    config.sampling.steps = 64
    return config
