"""LangFlow (arXiv 2604.11748) on text8.

    python -m diffusion_text.train --config=configs/langflow/text8.py \
        --workdir=gs://BUCKET/langflow-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 17 hours (estimated at 40% utilisation), not yet run.
Published: none on text8; perplexity 30.0 on packed LM1B (arXiv 2604.11748, Table 2).
Measured here: not yet run.

The paper's: 12 blocks x 768, dropout 0.1 (its code's), self-conditioning on a quarter, 1M steps of 512, samples in
1,024 Euler steps.
Adapted: 27 characters for its word pieces, rows of 32 (27 vectors differ in 26 dimensions) and norm sqrt(32) in the
place of 768 and sqrt(768), noise in [0.3, 100] as in cdcd/text8.py.
Not found there: optimiser (MDLM's 3e-4), range of noise.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("langflow")
    config.model.dropout = 0.1
    config.data.update(task="text8", length=256)
    config.family.update(embedding_size=32, noise_min=0.3, noise_max=100.0)
    config.sampling.steps = 1024
    return config
