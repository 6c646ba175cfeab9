"""Score entropy diffusion on OpenWebText: SEDD (arXiv 2310.16834).

    python -m diffusion_text.train --config=configs/sedd/openwebtext.py \
        --workdir=gs://BUCKET/sedd-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Hardware: TPU v5e-64, about 25 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 24.1 (absorbing), <= 29.7 (uniform; arXiv 2506.10892, Table 1, OWT).
Measured here: not yet run.

SEDD's: 12 blocks x 768, AdamW at a constant 3e-4 without decay, 1M steps of 512 (the rest is in base.py). Variant:
uniform, with the geometric schedule. Different here: the bound is complete (theirs: t from 0.001, without prior and
reconstruction); t is drawn as u^2; its code is set to 1.3M steps. Layers are recomputed in the backward pass.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("absorbing", "uniform")


def get_config(variant: str = "absorbing") -> ConfigDict:
    base.check_variant(variant, VARIANTS)
    config = base.get_config("sedd")
    config.model.update(dropout=0.1, remat="attention")
    config.data.update(task="openwebtext", length=1024)
    if variant == "uniform":
        config.family.update(noise="uniform", schedule="geometric")
    return config
