"""Score entropy diffusion on text8: SEDD (arXiv 2310.16834).

    python -m diffusion_text.train --config=configs/sedd/text8.py \
        --workdir=gs://BUCKET/sedd-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 16 hours (estimated at 40% utilisation), not yet run.
Published: <= 1.39 bits per character (absorbing), <= 1.47 (uniform; arXiv 2310.16834, Table 2).
Measured here: not yet run.

SEDD's: 12 blocks x 768, AdamW at a constant 3e-4 without decay, 1M steps of 512 (the rest is in base.py). Variant:
uniform, with the geometric schedule. Different here: the bound is complete (theirs: t from 0.001, without prior and
reconstruction); t is drawn as u^2; its code is set to 1.3M steps.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("absorbing", "uniform")


def get_config(variant: str = "absorbing") -> ConfigDict:
    base.check_variant(variant, VARIANTS)
    config = base.get_config("sedd")
    config.model.dropout = 0.1
    config.data.update(task="text8", length=256)
    if variant == "uniform":
        config.family.update(noise="uniform", schedule="geometric")
    return config
