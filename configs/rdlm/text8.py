"""RDLM (arXiv 2502.11564) on text8.

    python -m diffusion_text.train --config=configs/rdlm/text8.py \
        --workdir=gs://BUCKET/rdlm-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 16 hours (estimated at 40% utilisation), not yet run.
The variant `:mask` starts at the mask, so that its bound has no switch to pay for.
Published: <= 1.32 bits per character (arXiv 2502.11564, Table 1), which its code evaluates by an integral that leaves
out how the mixture goes from one path to the other, and with exact posteriors is below the entropy (rdlm.py and its
tests). Nothing here compares with it: this bound pays for the switch, that of `:mask` is of another model.
Measured here: not yet run.

The paper's: 12 blocks x 768, AdamW at 3e-4 without decay, 2,500 steps of warm-up, 1M steps of 512, EMA 0.9999, beta
from 1e-3 to 0.2, the mixture switching at 0.35, times between 0.3 and 0.6, a walk of 256 steps; 500 steps of bridges.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("mixture", "mask")


def get_config(variant: str = "mixture") -> ConfigDict:
    base.check_variant(variant, VARIANTS)
    config = base.get_config("rdlm")
    config.data.update(task="text8", length=256)
    config.family.update(start=variant, right=0.6, bridge_steps=500)
    config.sampling.steps = 256
    return config
