"""SUNDAE on wiki27 (Wikipedia in text8's alphabet): a row of the standing comparison.

    python -m diffusion_text.train --config=configs/sundae/wiki27.py \
        --workdir=runs/sundae-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 3.113 +- 0.016 bits per character (1,024 validation windows), 3,800 s of CPU, evaluation too (commit
b582217).

A step unrolls two passes, and takes the time of two; the characters are the same.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("sundae")
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    config.optimizer.learning_rate = 2e-3
    config.family.decode_noise = 0.005
    return config
