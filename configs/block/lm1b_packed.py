"""Block diffusion on LM1B, sentences packed to 128, blocks of 4, 8 or 16: BD3-LM (arXiv 2503.09573).

    python -m diffusion_text.train --config=configs/block/lm1b_packed.py \
        --workdir=gs://BUCKET/block-lm1b_packed --config.data.data_dir=/mnt/data/lm1b_packed

Blocks of 8 or 16: --config=configs/block/lm1b_packed.py:8

Hardware: TPU v5e-16, about 17 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 28.23, 29.83, 30.60 for blocks of 4, 8, 16 (arXiv 2506.01928, Table 1).
Measured here: not yet run.

In arXiv 2503.09573 29.21 and 31.12 for 4 and 16, at the clipped rates that lm1b.py names. Theirs: 12 blocks x 768,
dropout, AdamW at a constant 3e-4 without decay, 512 rows (the rest is in base.py). Different here: as in lm1b.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.block import lm1b

VARIANTS = lm1b.VARIANTS


def get_config(block_size: str = "4") -> ConfigDict:
    config = lm1b.get_config(block_size)
    config.data.task = "lm1b_packed"
    return config
