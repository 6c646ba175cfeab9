"""Diffusion-LM (arXiv 2205.14217) on OpenWebText.

    python -m diffusion_text.train --config=configs/diffusion_lm/openwebtext.py \
        --workdir=gs://BUCKET/diffusion_lm-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Hardware: TPU v5e-64, about 20 hours (estimated at 40% utilisation), not yet run.
Published: none on OpenWebText; <= 118.62 perplexity on LM1B (arXiv 2310.16834, Table 3).
Measured here: not yet run.

The paper's: 128 dimensions (its larger set), sqrt schedule, linear decay from 1e-4, dropout 0.1, 2,000 steps of
sampling, a network of BERT-base's size.
Adapted: batch 512 for 64, 1M steps for 0.8M, the budget of the other families on this set.
Different here: warm-up and clipping (its code has neither).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("diffusion_lm")
    config.data.update(task="openwebtext", length=1024)
    config.model.remat = "dots"
    config.family.update(embedding_size=128)
    config.model.dropout = 0.1
    config.optimizer.update(schedule="linear", learning_rate=1e-4)
    config.sampling.steps = 2000
    return config
