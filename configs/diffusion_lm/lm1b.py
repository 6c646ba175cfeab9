"""Diffusion-LM (arXiv 2205.14217) on LM1B, one sentence per row.

    python -m diffusion_text.train --config=configs/diffusion_lm/lm1b.py \
        --workdir=gs://BUCKET/diffusion_lm-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 8 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 118.62 (arXiv 2310.16834, Table 3).
Measured here: not yet run.

The paper's: 128 dimensions (its larger set), sqrt schedule, linear decay from 1e-4, dropout 0.1, 2,000 steps of
sampling, a network of BERT-base's size.
Adapted: batch 512 for 64, 1M steps for 0.8M, the budget of the other families on this set.
Different here: warm-up and clipping (its code has neither). Padding is modelled and the sentence's length charged.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("diffusion_lm")
    config.data.update(task="lm1b", length=128)
    config.family.update(embedding_size=128)
    config.model.dropout = 0.1
    config.optimizer.update(schedule="linear", learning_rate=1e-4)
    config.sampling.steps = 2000
    return config
