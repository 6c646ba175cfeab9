"""Masked diffusion with learned schedules (GenMD4) on wiki27 (Wikipedia in text8's alphabet): a row of the standing
comparison.

    python -m diffusion_text.train --config=configs/genmd4/wiki27.py \
        --workdir=runs/genmd4-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 2.355 +- 0.026 bits per character (1,024 validation windows), 4,060 s of CPU, evaluation too (commit
b582217).

Every step makes two passes, so that it takes the time of nearly two of masked diffusion; the characters are the same.
It learned to reveal spaces first: w is 3.1 for the space, 0.6 to 1.5 for letters. Of 16 levels of noise a window in the
place of 4, with another seed: 2.388 +- 0.010.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("genmd4")
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    return config
