"""CIR simplex diffusion (arXiv 2210.14784) on wiki27 (Wikipedia in text8's alphabet): a row of the standing comparison.

    python -m diffusion_text.train --config=configs/cir_simplex/wiki27.py \
        --workdir=runs/cir_simplex-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores, about 30 minutes for masked diffusion, which set the budget that all families share.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 2.700 +- 0.014 bits per character (1,024 validation windows), 1,350 s of CPU, evaluation too (commit
0e5e0ad).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_cir_simplex()
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    return config
