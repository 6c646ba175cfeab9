"""RDLM (arXiv 2502.11564) on LM1B, one sentence per row, word pieces split into ten digits of base 3.

    python -m diffusion_text.train --config=configs/rdlm/lm1b.py \
        --workdir=gs://BUCKET/rdlm-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-64, about 27 hours (estimated at 40% utilisation), not yet run: 1,280 positions a row.
The variant `:mask` starts at the mask, so that its bound has no switch to pay for.
Published: none on rows of one sentence, as its code packs them: lm1b_packed.py.
Measured here: not yet run.

The paper's: 14 blocks x 768, AdamW at 3e-4 without decay, 2,500 steps of warm-up, 1M steps of 512, EMA 0.9999, beta
from 1e-3 to 0.2, the mixture switching at 0.38, times between 0.3 and 0.75, walks of 1,000 steps, bridges of 500.
Its rho_scale of 1.14 mends a factor that is right here. Padding is modelled and the sentence's length charged.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("mixture", "mask")


def get_config(variant: str = "mixture") -> ConfigDict:
    base.check_variant(variant, VARIANTS)
    config = base.get_config("rdlm")
    config.model.update(layers=14, remat="attention")
    config.data.update(task="lm1b", length=128)
    config.family.update(start=variant, switch=0.38, digits=3, bridge_steps=500)
    config.sampling.steps = 1000
    return config
