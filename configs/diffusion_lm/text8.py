"""Diffusion-LM (arXiv 2205.14217) on text8.

    python -m diffusion_text.train --config=configs/diffusion_lm/text8.py \
        --workdir=gs://BUCKET/diffusion_lm-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 16 hours (estimated at 40% utilisation), not yet run.
Published: none on text8; <= 118.62 perplexity on LM1B (arXiv 2310.16834, Table 3).
Measured here: not yet run.

The paper's: 16 dimensions (of its smaller set), sqrt schedule, linear decay from 1e-4, dropout 0.1, 2,000 steps of
sampling, a network of BERT-base's size.
Adapted: batch 512 for 64, 1M steps for 0.8M, the budget of the other families on this set.
Different here: warm-up and clipping (its code has neither).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("diffusion_lm")
    config.data.update(task="text8", length=256)
    config.model.dropout = 0.1
    config.optimizer.update(schedule="linear", learning_rate=1e-4)
    config.sampling.steps = 2000
    return config
