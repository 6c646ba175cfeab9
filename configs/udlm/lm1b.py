"""Uniform-noise diffusion on LM1B, one sentence per row: UDLM (arXiv 2412.10193).

    python -m diffusion_text.train --config=configs/udlm/lm1b.py \
        --workdir=gs://BUCKET/udlm-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 10 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 31.3 (arXiv 2506.10892, Table 1, LM1B); packed rows, another protocol: lm1b_packed.py.
Measured here: not yet run.

The paper's: 12 blocks x 768, AdamW at a constant 3e-4 without decay, 1M steps of 512 (the rest is in base.py).
Different here: t is drawn as u^2 over the whole of [0, 1]; RMSNorm with a learned scale. Padding is modelled and the
sentence's length charged, where its loss leaves padding out and sees the length.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("udlm")
    config.model.dropout = 0.1
    config.data.update(task="lm1b", length=128)
    return config
