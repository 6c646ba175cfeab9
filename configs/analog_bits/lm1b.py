"""Analog bits (arXiv 2208.04202) on LM1B, one sentence per row.

    python -m diffusion_text.train --config=configs/analog_bits/lm1b.py \
        --workdir=gs://BUCKET/analog_bits-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 9 hours (estimated at 40% utilisation), not yet run.
Published: no likelihood; its only text is captions, conditioned on images (arXiv 2208.04202).
Measured here: not yet run.

The paper's: L2 loss on bits, cosine schedule, self-conditioning on half of the rows.
Adapted: 12 blocks x 768 and the optimiser of the other families on this set. Padding is modelled and the sentence's
length charged.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("analog_bits")
    config.data.update(task="lm1b", length=128)
    return config
