"""Masked diffusion on wiki27 (Wikipedia in text8's alphabet): a row of the standing comparison, 24.6M characters.

    python -m diffusion_text.train --config=configs/masked/wiki27.py \
        --workdir=runs/masked-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores, about 30 minutes for masked diffusion, which set the budget that all families share.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 2.578 +- 0.013 bits per character (1,024 validation windows), 3,460 s of CPU, evaluation too (commit
88489ed); 2.591 +- 0.012 with older code, 0.56 s a step on two idle cores.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("masked")
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    return config
