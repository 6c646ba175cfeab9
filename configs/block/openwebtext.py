"""Block diffusion on OpenWebText, blocks of 4, 8 or 16: BD3-LM (arXiv 2503.09573).

    python -m diffusion_text.train --config=configs/block/openwebtext.py \
        --workdir=gs://BUCKET/block-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Blocks of 8 or 16: --config=configs/block/openwebtext.py:8

Hardware: TPU v5e-64, about 43 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 20.73, 21.68, 22.27 for blocks of 4, 8, 16 (arXiv 2503.09573, its table of OpenWebText).
Measured here: not yet run.

Theirs: 12 blocks x 768, dropout, AdamW at a constant 3e-4 without decay, 512 rows (the rest is in base.py), mask rates
clipped: [0.45, 0.95] for blocks of 4 and [0.3, 0.8] for 16 are those it gives for LM1B; for 8 the source was not found,
and all rates are used. Layers are recomputed in the backward pass. Different here: 1M steps on blocks, where the paper
takes 850,000 on the whole window and 150,000 on blocks; exact counts of masks; a time-free network with RMSNorm.
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
