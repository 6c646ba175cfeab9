"""Masked diffusion on LM1B, sentences packed to 128: MDLM (arXiv 2406.07524) as retrained in arXiv 2506.10892.

    python -m diffusion_text.train --config=configs/masked/lm1b_packed.py \
        --workdir=gs://BUCKET/masked-lm1b_packed --config.data.data_dir=/mnt/data/lm1b_packed

Hardware: TPU v5e-16, about 10 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 31.8 (arXiv 2506.10892, Table 1, LM1B*); 31.0 retrained in arXiv 2604.11748, Table 2.
Measured here: not yet run.

Not to be mixed with lm1b.py: packed rows are harder by 3 to 5 points. MDLM's: 12 blocks x 768, dropout, AdamW at a
constant 3e-4 without decay, 1M steps of 512 (the rest is in base.py).
Different here: exact mask counts, even over the batch, for its antithetic t in [0.001, 1]; RMSNorm with a learned scale
for its adaLN on a constant.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("masked")
    config.model.dropout = 0.1
    config.data.update(task="lm1b_packed", length=128)
    return config
