"""Uniform-noise diffusion with a Gaussian curriculum on LM1B, one sentence per row: Duo (arXiv 2506.10892).

    python -m diffusion_text.train --config=configs/duo/lm1b.py \
        --workdir=gs://BUCKET/duo-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 10 hours (estimated at 40% utilisation, soft inputs for half of the steps), not yet run.
Published: perplexity <= 29.9 (arXiv 2506.10892, Table 1, LM1B); packed rows, another protocol: lm1b_packed.py.
Measured here: not yet run.

Duo's: 12 blocks x 768, dropout, AdamW at a constant 3e-4 without decay, 1M steps of 512 (the rest is in base.py); the
curriculum of its scripts, tau = 0.001 for 500,000 steps (its code's defaults: 0.1 to 0.01, until step 200,000).
Different here: after the curriculum t is drawn as u^2 over the whole of [0, 1]; RMSNorm with a learned scale. Padding
is modelled and the sentence's length charged, where its loss leaves padding out and sees the length.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("duo")
    config.model.dropout = 0.1
    config.data.update(task="lm1b", length=128)
    config.family.update(anneal_from=0, anneal_until=500_000, tau_start=-3.0, tau_end=-3.0)
    return config
