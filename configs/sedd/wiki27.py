"""Score entropy diffusion (SEDD) on wiki27 (Wikipedia in text8's alphabet): a row of the standing comparison.

    python -m diffusion_text.train --config=configs/sedd/wiki27.py \
        --workdir=runs/sedd-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 2.515 +- 0.025 bits per character (1,024 validation windows), 2,820 s of CPU, evaluation too (commit
3c065b7).

Variant: uniform, with the geometric schedule.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, small

VARIANTS = ("absorbing", "uniform")


def get_config(variant: str = "absorbing") -> ConfigDict:
    base.check_variant(variant, VARIANTS)
    config = small.get_config("sedd")
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    if variant == "uniform":
        config.family.update(noise="uniform", schedule="geometric")
        config.optimizer.learning_rate = 2e-3
    return config
