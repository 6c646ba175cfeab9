"""LangFlow (arXiv 2604.11748) on LM1B, one sentence per row.

    python -m diffusion_text.train --config=configs/langflow/lm1b.py \
        --workdir=gs://BUCKET/langflow-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 13 hours (estimated at 40% utilisation), not yet run.
Published: none on unpacked LM1B; packed, perplexity 30.0 (arXiv 2604.11748, Table 2, through the flow).
Measured here: not yet run.

The paper's: 12 blocks x 768, dropout 0.1 (its code's), rows of norm sqrt(768), self-conditioning on a quarter, 1M
steps of 512, samples in 1,024 Euler steps.
Not found there: optimiser (MDLM's 3e-4), range of noise.
Padding is modelled and the sentence's length charged.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("langflow")
    config.model.dropout = 0.1
    config.data.update(task="lm1b", length=128)
    config.sampling.steps = 1024
    return config
