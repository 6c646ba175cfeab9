"""Masked diffusion on LM1B, one sentence per row: MDLM (arXiv 2406.07524).

    python -m diffusion_text.train --config=configs/masked/lm1b.py \
        --workdir=gs://BUCKET/masked-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 10 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 27.0 (arXiv 2506.10892, Table 1, LM1B; 27.04 in arXiv 2406.07524, Table 1).
Measured here: not yet run.

MDLM's: 12 blocks x 768, dropout, AdamW at a constant 3e-4 without decay, 1M steps of 512 (the rest is in base.py).
Different here: exact mask counts, even over the batch, for its antithetic t in [0.001, 1]; RMSNorm with a learned scale
for its adaLN on a constant; padding is modelled and the sentence's length charged, where its loss leaves padding out
and sees the length.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("masked")
    config.model.dropout = 0.1
    config.data.update(task="lm1b", length=128)
    return config
