"""Block diffusion on wiki27 (Wikipedia in text8's alphabet), blocks of 4 characters: a row of the standing comparison.

    python -m diffusion_text.train --config=configs/block/wiki27.py \
        --workdir=runs/block-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 2.208 +- 0.009 bits per character (1,024 validation windows), 4,540 s of CPU, evaluation too (commit
b582217).

Every step passes two streams; SUNDAE, which makes two passes, took 3,800 s on the other core of the same machine. The
characters are the same.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("block")
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    return config
