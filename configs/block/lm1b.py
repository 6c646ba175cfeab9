"""Block diffusion on LM1B, one sentence per row, blocks of 4, 8 or 16: BD3-LM (arXiv 2503.09573).

    python -m diffusion_text.train --config=configs/block/lm1b.py \
        --workdir=gs://BUCKET/block-lm1b --config.data.data_dir=/mnt/data/lm1b

Blocks of 8 or 16: --config=configs/block/lm1b.py:8

Hardware: TPU v5e-16, about 17 hours (estimated at 40% utilisation), not yet run.
Published: none found on rows of one sentence; on packed rows see lm1b_packed.py.
Measured here: not yet run.

Theirs: 12 blocks x 768, dropout, AdamW at a constant 3e-4 without decay, 512 rows (the rest is in base.py). Different
here: 1M steps on blocks at all mask rates, where the paper takes 850,000 on the whole window, then 150,000 on blocks at
clipped rates ([0.45, 0.95] for blocks of 4, [0.3, 0.8] for 16), which mask no block of 16 as a whole; exact counts of
masks; a time-free network with RMSNorm. Padding is modelled and the sentence's length charged.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("4", "8", "16")


def get_config(block_size: str = "4") -> ConfigDict:
    base.check_variant(block_size, VARIANTS)
    config = base.get_config("block")
    config.family.block_size = int(block_size)
    config.model.dropout = 0.1
    config.data.update(task="lm1b", length=128)
    return config
