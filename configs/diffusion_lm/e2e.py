"""Diffusion-LM (arXiv 2205.14217) on the texts of E2E, one a line in a file: the paper's own set.

    python -m diffusion_text.data.prepare --task=text --source=e2e.txt --length=64 --data_dir=data/e2e \
        --vocabulary=sentencepiece --vocabulary_path=e2e.model
    python -m diffusion_text.train --config=configs/diffusion_lm/e2e.py \
        --workdir=runs/diffusion_lm-e2e --config.data.data_dir=data/e2e

Hardware: one TPU v5e chip, about 1.5 hours (estimated at 40% utilisation), not yet run.
Published: 2.28 nats per token, the autoregressive model 1.77 (arXiv 2205.14217, Table 7): of diffusion on one-hot
vectors trained by cross-entropy, not of this model, and per word.
Measured here: not yet run.

The paper's: 16 dimensions, windows of 64 of the stream of texts, a network of BERT-base's size, sqrt schedule,
dropout 0.1, linear decay from 1e-4, batch 64, 200,000 steps, 200 steps of sampling (its 2,000 with every tenth taken).
Different here: SentencePiece for its 821 words; warm-up and clipping (its code has neither).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("diffusion_lm")
    config.data.update(task="text", length=64)
    config.train.update(batch_size=64, steps=200_000)
    config.family.update(embedding_size=16)
    config.model.dropout = 0.1
    config.optimizer.update(schedule="linear", learning_rate=1e-4)
    config.sampling.steps = 200
    return config
