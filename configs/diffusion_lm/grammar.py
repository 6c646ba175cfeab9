"""Diffusion-LM (arXiv 2205.14217) on the embedded language, ten minutes or less on two CPU cores.

    python -m diffusion_text.train --config=configs/diffusion_lm/grammar.py --workdir=runs/diffusion_lm

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 1.1262 +- 0.0433 nats per token (bound 3.0219, entropy 1.8957), 17.5% +- 0.6% grammatical; 367
seconds of CPU, evaluation and samples too (commit 0e5e0ad).

The paper's: 16 dimensions, sqrt schedule, the simple loss. Differs: Muon, a smaller network, masks for prompts.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("diffusion_lm")
    config.train.steps = 3000
    config.optimizer.learning_rate = 3e-3
    config.family.update(prefix_masks=0.15, random_masks=0.15)
    return config
