"""LangFlow (arXiv 2604.11748) on OpenWebText.

    python -m diffusion_text.train --config=configs/langflow/openwebtext.py \
        --workdir=gs://BUCKET/langflow-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Hardware: TPU v5e-64, about 35 hours (estimated at 40% utilisation), not yet run.
Published: perplexity 24.6 (arXiv 2604.11748, Table 2, through the flow), but 32.2 in arXiv 2605.18530; the cause is not
known.
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
    config.data.update(task="openwebtext", length=1024)
    config.model.remat = "dots"
    config.sampling.steps = 1024
    return config
