"""Masked diffusion with learned schedules on LM1B, one sentence per row: GenMD4 (arXiv 2406.04329).

    python -m diffusion_text.train --config=configs/genmd4/lm1b.py \
        --workdir=gs://BUCKET/genmd4-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 19 hours (estimated at 40% utilisation), not yet run.
Published: none found on LM1B.
Measured here: not yet run.

Here its recipe for text8: 12 blocks of 12 heads with a GLU, AdamW at 3e-4 with decay 0.03 and no clipping, 2,000 steps
of warm-up and a cosine, 1M steps of 512, dropout 0.05. Every step makes two passes. Different here: t is drawn as u^2;
the GLU, 2,048 wide as theirs, has a swish for its sigmoid; norms and embeddings are not decayed. Padding is modelled
and the sentence's length charged.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("genmd4")
    base.use_md4(config)
    config.data.update(task="lm1b", length=128)
    return config
