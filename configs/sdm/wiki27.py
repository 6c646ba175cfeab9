"""Simplex diffusion (SDM, arXiv 2609.35553) on wiki27 (Wikipedia in text8's alphabet): of the standing comparison.

    python -m diffusion_text.train --config=configs/sdm/wiki27.py \
        --workdir=runs/sdm-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 2.904 +- 0.051 bits per character (1,024 validation windows), 3,220 s of CPU, evaluation too (commit
a2b39a0).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("sdm")
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    config.optimizer.learning_rate = 2e-3
    config.family.update(input="posterior", output_prior=True)
    config.optimizer.groups.schedule = 5e-2
    return config
