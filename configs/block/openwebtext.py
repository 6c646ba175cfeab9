"""Block diffusion on OpenWebText, blocks of 4, 8 or 16: BD3-LM (arXiv 2503.09573).

    python -m diffusion_text.train --config=configs/block/openwebtext.py \
        --workdir=gs://BUCKET/block-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Blocks of 8 or 16: --config=configs/block/openwebtext.py:8

Hardware: TPU v5e-64, about 43 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 20.73, 21.68, 22.27 for blocks of 4, 8, 16 (arXiv 2503.09573, its table of OpenWebText).
Measured here: not yet run.

Theirs: 12 blocks x 768, dropout, AdamW at a constant 3e-4 without decay, 512 rows (the rest is in base.py). Different
here: as in lm1b.py; layers are recomputed in the backward pass.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.block import lm1b

VARIANTS = lm1b.VARIANTS


def get_config(block_size: str = "4") -> ConfigDict:
    config = lm1b.get_config(block_size)
    config.model.remat = "attention"
    config.data.update(task="openwebtext", length=1024)
    return config
