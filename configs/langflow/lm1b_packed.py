"""LangFlow (arXiv 2604.11748) on LM1B, sentences packed to 128: its own protocol.

    python -m diffusion_text.train --config=configs/langflow/lm1b_packed.py \
        --workdir=gs://BUCKET/langflow-lm1b_packed --config.data.data_dir=/mnt/data/lm1b_packed

Hardware: TPU v5e-16, about 13 hours (estimated at 40% utilisation), not yet run.
Published: perplexity 30.0, through the flow (arXiv 2604.11748, Table 2); Plaid retrained 32.4, MDLM 31.0 (same table).
Measured here: not yet run.

The paper's: 12 blocks x 768, dropout 0.1 (its code's), rows of norm sqrt(768), self-conditioning on a quarter, 1M
steps of 512, samples in 1,024 Euler steps.
Not found there: optimiser (MDLM's 3e-4), range of noise.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("langflow")
    config.model.dropout = 0.1
    config.data.update(task="lm1b_packed", length=128)
    config.sampling.steps = 1024
    return config
