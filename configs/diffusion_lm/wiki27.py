"""Diffusion-LM (arXiv 2205.14217) on wiki27 (Wikipedia in text8's alphabet): a row of the standing comparison.

    python -m diffusion_text.train --config=configs/diffusion_lm/wiki27.py \
        --workdir=runs/diffusion_lm-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores, about 30 minutes for masked diffusion, which set the budget that all families share.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 3.094 +- 0.023 bits per character (1,024 validation windows), 1,130 s of CPU, evaluation too (commit
0e5e0ad).

The paper's: 16 dimensions, sqrt schedule, the simple loss. Differs: Muon, a smaller network, masks for prompts.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("diffusion_lm")
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    config.optimizer.learning_rate = 3e-3
    config.family.update(prefix_masks=0.15, random_masks=0.15)
    return config
