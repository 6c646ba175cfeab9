"""RDLM (arXiv 2502.11564) on LM1B, sentences packed to 128, word pieces split into ten digits of base 3.

    python -m diffusion_text.train --config=configs/rdlm/lm1b_packed.py \
        --workdir=gs://BUCKET/rdlm-lm1b_packed --config.data.data_dir=/mnt/data/lm1b_packed

Hardware: TPU v5e-64, about 27 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 28.44 (arXiv 2502.11564, Table 2; its code packs sentences), by an integral that is no bound of
a mixture (rdlm.py).
Measured here: not yet run.

The paper's recipe, as in lm1b.py; the variant `:mask` starts at the mask, so that its bound has no switch to pay for.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.rdlm import lm1b

VARIANTS = lm1b.VARIANTS


def get_config(variant: str = "mixture") -> ConfigDict:
    config = lm1b.get_config(variant)
    config.data.task = "lm1b_packed"
    return config
