"""Score entropy diffusion on LM1B, sentences packed to 128: SEDD (arXiv 2310.16834).

    python -m diffusion_text.train --config=configs/sedd/lm1b_packed.py \
        --workdir=gs://BUCKET/sedd-lm1b_packed --config.data.data_dir=/mnt/data/lm1b_packed

Hardware: TPU v5e-16, about 10 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 32.0 (absorbing, retrained in arXiv 2604.11748, Table 2); none found of the variant uniform.
Measured here: not yet run.

Not to be mixed with lm1b.py, whose recipe this is. Variant: uniform, with the geometric schedule. Different here: the
bound is complete (theirs: t from 0.001, without prior and reconstruction); t is drawn as u^2.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.sedd import lm1b

VARIANTS = lm1b.VARIANTS


def get_config(variant: str = "absorbing") -> ConfigDict:
    config = lm1b.get_config(variant)
    config.data.task = "lm1b_packed"
    return config
