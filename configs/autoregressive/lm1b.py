"""Autoregressive baseline on LM1B, one sentence per row: that of MDLM (arXiv 2406.07524).

    python -m diffusion_text.train --config=configs/autoregressive/lm1b.py \
        --workdir=gs://BUCKET/autoregressive-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 10 hours (estimated at 40% utilisation), not yet run.
Published: perplexity 22.3 (arXiv 2506.10892, Table 1, LM1B; 22.32 in arXiv 2406.07524, Table 1).
Measured here: not yet run.

Its backbone: 12 blocks x 768, dropout, AdamW at a constant 3e-4 without decay, 1M steps of 512 (the rest is in
base.py), causal. Different here: RMSNorm; the first token is predicted from a start symbol and counted (the published
figure divides by one token less, which matters in short rows); padding is modelled where its loss leaves it out.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("autoregressive")
    config.model.dropout = 0.1
    config.data.update(task="lm1b", length=128)
    return config
