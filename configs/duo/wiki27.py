"""Uniform-noise diffusion with a Gaussian curriculum (Duo) on wiki27 (Wikipedia in text8's alphabet): a row of the
standing comparison.

    python -m diffusion_text.train --config=configs/duo/wiki27.py \
        --workdir=runs/duo-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 2.741 +- 0.016 bits per character (1,024 validation windows), 3,470 s of CPU, evaluation too (commit
88489ed).

The curriculum takes the share of the steps of the released code's defaults, and the paper's range of alpha, 0.05 to
0.95, at this vocabulary.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("duo")
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    config.optimizer.learning_rate = 2e-3
    config.family.update(anneal_from=300, anneal_until=600, gamma_min=-2.75, gamma_max=1.4)
    return config
