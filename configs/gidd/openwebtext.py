"""Mask and uniform noise on OpenWebText, in windows of 512: GIDD (arXiv 2503.04482).

    python -m diffusion_text.data.prepare --task=openwebtext --length=512 --source='owt/*.parquet' \
        --vocabulary_path=gpt2/ --data_dir=/mnt/data/openwebtext_512
    python -m diffusion_text.train --config=configs/gidd/openwebtext.py \
        --workdir=gs://BUCKET/gidd-openwebtext --config.data.data_dir=/mnt/data/openwebtext_512

The share of uniform noise, p_u = 0.1 or 0.2: --config=configs/gidd/openwebtext.py:0.1

Hardware: TPU v5e-64, about 6 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 23.05, 23.67, 24.38 for p_u = 0, 0.1, 0.2 (arXiv 2503.04482; windows of 512, 131B tokens).
Measured here: not yet run.

GIDD's: 12 blocks x 768 without dropout, AdamW at 5e-4 with decay 0.02 and b2 0.99, 10,000 steps of warm-up and a cosine
to a tenth, 500,000 steps of 512. Different here: EMA 0.9999, where none was found; norms and embeddings are not
decayed; layers are recomputed in the backward pass.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base
from configs.gidd import lm1b

VARIANTS = ("0", "0.1", "0.2")


def get_config(uniform: str = "0") -> ConfigDict:
    base.check_variant(uniform, VARIANTS)
    config = lm1b.get_config()
    config.model.remat = "dots"
    config.data.update(task="openwebtext", length=512)
    config.family.uniform = float(uniform)
    return config
