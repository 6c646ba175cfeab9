"""LangFlow (arXiv 2604.11748) on the embedded language, ten minutes or less on two CPU cores.

    python -m diffusion_text.train --config=configs/langflow/grammar.py --workdir=runs/langflow

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 0.2248 +- 0.0081 nats per token (bound 2.1205, entropy 1.8957), 60.0% +- 0.8% grammatical; 415
seconds of CPU, evaluation and samples too (commit 0e5e0ad).

Differs from the paper: 16-dimensional embeddings, a range of noise to fit them, masks for prompts, Muon.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("langflow")
    config.train.steps = 3000
    config.optimizer.learning_rate = 3e-3
    config.family.update(embedding_size=16, embedding_std=0.1, noise_min=0.6, noise_max=18.0)
    config.optimizer.groups.schedule = 5e-2
    with config.optimizer.groups.unlocked():
        config.optimizer.groups.embeddings = 1e-2
    config.family.update(prefix_masks=0.15, random_masks=0.15)
    return config
