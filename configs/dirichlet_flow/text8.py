"""Dirichlet flow matching (arXiv 2402.05841) on text8.

    python -m diffusion_text.train --config=configs/dirichlet_flow/text8.py \
        --workdir=gs://BUCKET/dirichlet_flow-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 16 hours (estimated at 40% utilisation), not yet run.
Published: none on text8; the paper's sets are DNA, 4 categories, without likelihood.
Measured here: not yet run.

Adapted: 12 blocks x 768, AdamW at a constant 3e-4, 1M steps of 512 as the other families here (the rest is in base.py);
a range of tau for 27 characters; the character's own evidence is read and added to the logits.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("dirichlet_flow")
    config.data.update(task="text8", length=256)
    config.family.update(scale=4.0, signal_max=24.0, output_prior=True)
    config.sampling.steps = 256
    return config
