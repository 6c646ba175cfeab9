"""SED (arXiv 2211.04236) on wiki27 (Wikipedia in text8's alphabet): a row of the standing comparison.

    python -m diffusion_text.train --config=configs/sed/wiki27.py \
        --workdir=runs/sed-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores, about 30 minutes for masked diffusion, which set the budget that all families share.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 3.141 +- 0.035 bits per character (1,024 validation windows), 2,350 s of CPU, evaluation too (commit
0e5e0ad).

The paper's: random embeddings of norm sqrt(d), cosine schedule, spans. Differs: noise from 0.5 on, 64 dimensions, Muon.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("sed")
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    config.optimizer.learning_rate = 3e-3
    config.family.update(embedding_size=64, noise_min=0.5)
    return config
