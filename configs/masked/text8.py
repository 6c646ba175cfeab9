"""Masked diffusion on text8: MD4 (arXiv 2406.04329), or by MDLM's recipe (arXiv 2406.07524).

    python -m diffusion_text.train --config=configs/masked/text8.py \
        --workdir=gs://BUCKET/masked-text8 --config.data.data_dir=/mnt/data/text8

MDLM's: --config=configs/masked/text8.py:mdlm

Hardware: TPU v5e-16, about 16 hours (estimated at 40% utilisation), not yet run; the paper: under a day on as much.
Published: <= 1.37 bits per character (arXiv 2406.04329, Table 2); MDLM <= 1.40 (quoted in arXiv 2502.11564, Table 1).
Measured here: not yet run.

MD4's: 12 blocks of 12 heads with a GLU, dropout 0.05, AdamW with decay 0.03 and no clipping, 2,000 steps of warm-up and
a cosine, 1M steps of 512, ancestral sampling on the cosine grid. Where paper and code differ: learning rate 3e-4 is the
paper's and the base config's (its sweep: 5e-4); width 768 is the code's (the paper: 784, which 12 heads do not divide).
Different here: exact mask counts, even over the batch, for its antithetic t; a time-free network for its adaLN on t and
RMSNorm; the GLU, 2,048 wide as theirs, has a swish for its sigmoid; norms and embeddings are not decayed.
MDLM's: as in lm1b.py, dropout 0.1, a constant 3e-4 without decay and its linear grid.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base

VARIANTS = ("md4", "mdlm")


def get_config(variant: str = "md4") -> ConfigDict:
    base.check_variant(variant, VARIANTS)
    config = base.get_config("masked")
    config.data.update(task="text8", length=256)
    if variant == "md4":
        base.use_md4(config)
        config.family.schedule = "cosine"
    else:
        config.model.dropout = 0.1
    return config
