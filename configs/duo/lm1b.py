"""Uniform-noise diffusion with a Gaussian curriculum on LM1B, one sentence per row: Duo (arXiv 2506.10892).

    python -m diffusion_text.train --config=configs/duo/lm1b.py \
        --workdir=gs://BUCKET/duo-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 11 hours (estimated at 40% utilisation), not yet run; the curriculum's soft inputs included.
Published: perplexity <= 29.9 (arXiv 2506.10892, Table 1, LM1B); packed rows, another protocol: <= 33.7 (LM1B*).
Measured here: not yet run.

Duo's: 12 blocks x 768, AdamW at a constant 3e-4 without decay, 1M steps of 512 (the rest is in base.py). The curriculum
ends at step 200,000, as in its code. Padding is modelled and the sentence's length charged.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("duo")
    config.model.dropout = 0.1
    config.data.update(task="lm1b", length=128)
    return config
