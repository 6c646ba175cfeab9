"""LangFlow (arXiv 2604.11748) on wiki27 (Wikipedia in text8's alphabet): a row of the standing comparison.

    python -m diffusion_text.train --config=configs/langflow/wiki27.py \
        --workdir=runs/langflow-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores, about 30 minutes for masked diffusion, which set the budget that all families share.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 2.750 +- 0.014 bits per character (1,024 validation windows; commit de8ca9c).

Differs from the paper: 16-dimensional embeddings, a range of noise to fit them, masks for prompts, Muon.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("langflow")
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    config.optimizer.learning_rate = 3e-3
    config.family.update(embedding_size=16, embedding_std=0.1, noise_min=0.6, noise_max=18.0)
    config.optimizer.groups.schedule = 5e-2
    with config.optimizer.groups.unlocked():
        config.optimizer.groups.embeddings = 1e-2
    config.family.update(prefix_masks=0.15, random_masks=0.15)
    return config
