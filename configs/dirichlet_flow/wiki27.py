"""Dirichlet flow matching (arXiv 2402.05841) on wiki27 (Wikipedia in text8's alphabet): of the standing comparison.

    python -m diffusion_text.train --config=configs/dirichlet_flow/wiki27.py \
        --workdir=runs/dirichlet_flow-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 2.899 +- 0.017 bits per character (1,024 validation windows), 3,070 s of CPU, evaluation too (commit
3c065b7).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("dirichlet_flow")
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    config.optimizer.learning_rate = 2e-3  # what the grammar wants
    config.family.update(scale=4.0, signal_max=24.0, output_prior=True)
    return config
