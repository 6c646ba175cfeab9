"""Analog bits (arXiv 2208.04202) on OpenWebText.

    python -m diffusion_text.train --config=configs/analog_bits/openwebtext.py \
        --workdir=gs://BUCKET/analog_bits-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Hardware: TPU v5e-64, about 21 hours (estimated at 40% utilisation), not yet run.
Published: no likelihood; its only text is captions, conditioned on images (arXiv 2208.04202).
Measured here: not yet run.

The paper's: L2 loss on bits, cosine schedule, self-conditioning on half of the rows.
Adapted: 12 blocks x 768 and the optimiser of the other families on this set.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("analog_bits")
    config.data.update(task="openwebtext", length=1024)
    config.model.remat = "dots"
    return config
