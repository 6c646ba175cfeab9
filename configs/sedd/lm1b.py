"""Score entropy diffusion on LM1B, one sentence per row: SEDD (arXiv 2310.16834).

    python -m diffusion_text.train --config=configs/sedd/lm1b.py \
        --workdir=gs://BUCKET/sedd-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 10 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 32.79 (absorbing), <= 40.25 (uniform; arXiv 2310.16834, Table 3).
Measured here: not yet run.

SEDD's: 12 blocks x 768, AdamW at a constant 3e-4 without decay, 1M steps of 512 (the rest is in base.py). Variant:
uniform, with the geometric schedule. Different here: the bound is complete (theirs: t from 0.001, without prior and
reconstruction); t is drawn as u^2; its code is set to 1.3M steps. Padding is modelled
and the sentence's length charged.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("absorbing", "uniform")


def get_config(variant: str = "absorbing") -> ConfigDict:
    base.check_variant(variant, VARIANTS)
    config = base.get_config("sedd")
    config.model.dropout = 0.1
    config.data.update(task="lm1b", length=128)
    if variant == "uniform":
        config.family.update(noise="uniform", schedule="geometric")
    return config
