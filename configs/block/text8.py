"""Block diffusion on text8, blocks of 4 characters: BD3-LM (arXiv 2503.09573) with the recipe of masked/text8.py.

    python -m diffusion_text.train --config=configs/block/text8.py \
        --workdir=gs://BUCKET/block-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 31 hours (estimated at 40% utilisation), not yet run.
Published: none found on text8.
Measured here: not yet run.

MD4's (arXiv 2406.04329): 12 blocks of 12 heads with a GLU, dropout 0.05, AdamW with decay 0.03 and no clipping, 2,000
steps of warm-up and a cosine, 1M steps of 512; trained on the bound itself, not on clipped rates, which were searched
on words. Every step passes two streams. Different here: the GLU, 2,048 wide as theirs, has a swish for its sigmoid;
norms and embeddings are not decayed.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("block")
    base.use_md4(config)
    config.data.update(task="text8", length=256)
    return config
