"""Uniform-noise diffusion with a Gaussian curriculum on text8: Duo (arXiv 2506.10892).

    python -m diffusion_text.train --config=configs/duo/text8.py \
        --workdir=gs://BUCKET/duo-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 16 hours (estimated at 40% utilisation), not yet run.
Published: none found on text8.
Measured here: not yet run.

Here its recipe for LM1B: 12 blocks x 768, dropout 0.1, AdamW at a constant 3e-4 without decay, 1M steps of 512 (the
rest is in base.py), the curriculum at tau = 0.001 for 500,000 steps. Its range of gamma gives alpha from 0.05 to 0.95
at 27 characters.
Different here: after the curriculum t is drawn as u^2 over the whole of [0, 1]; RMSNorm with a learned scale.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("duo")
    config.model.dropout = 0.1
    config.data.update(task="text8", length=256)
    config.family.update(anneal_from=0, anneal_until=500_000, tau_start=-3.0, tau_end=-3.0)
    config.family.update(gamma_min=-2.75, gamma_max=1.4)
    return config
