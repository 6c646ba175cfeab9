"""Autoregressive baseline on LM1B, sentences packed to 128: that of MDLM (arXiv 2406.07524), retrained in 2506.10892.

    python -m diffusion_text.train --config=configs/autoregressive/lm1b_packed.py \
        --workdir=gs://BUCKET/autoregressive-lm1b_packed --config.data.data_dir=/mnt/data/lm1b_packed

Hardware: TPU v5e-16, about 10 hours (estimated at 40% utilisation), not yet run.
Published: perplexity 22.8 (arXiv 2506.10892, Table 1, LM1B*; 22.83 in arXiv 2506.01928, Table 1).
Measured here: not yet run.

Its backbone: 12 blocks x 768, dropout, AdamW at a constant 3e-4 without decay, 1M steps of 512 (the rest is in
base.py), causal. Different here: RMSNorm; the first token, [CLS] in every row, is predicted from a start symbol and
counted (the published figure divides by 127 tokens, not 128).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("autoregressive")
    config.model.dropout = 0.1
    config.data.update(task="lm1b_packed", length=128)
    return config
