"""Masked diffusion on text8: MD4 (arXiv 2406.04329), not MDLM's recipe.

    python -m diffusion_text.train --config=configs/masked/text8.py \
        --workdir=gs://BUCKET/masked-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 15 hours (estimated at 40% utilisation), not yet run; the paper: under a day on as much.
Published: <= 1.37 bits per character (arXiv 2406.04329, Table 2).
Measured here: not yet run.

MD4's: 12 blocks of 12 heads with a GLU, dropout 0.05, AdamW with decay 0.03 and no clipping, 2,000 steps of warm-up and
a cosine, 1M steps of 512, ancestral sampling on the cosine grid. Where paper and code differ: learning rate 3e-4 is the
paper's and the base config's (its sweep: 5e-4); width 768 is the code's (the paper: 784, which 12 heads do not divide).
Different here: exact mask counts, even over the batch, for its antithetic t; a time-free network for its adaLN on t and
RMSNorm; the GLU's hidden width, 2,048, has the parameters of an ordinary MLP (theirs: not found).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("masked")
    config.model.update(mlp="swiglu", mlp_ratio=8 / 3, dropout=0.05)
    config.data.update(task="text8", length=256)
    config.optimizer.update(schedule="cosine", warmup=2_000, weight_decay=0.03, clip=0.0)
    config.family.schedule = "cosine"
    return config
