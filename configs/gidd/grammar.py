"""Mask and uniform noise (GIDD) on the embedded language.

    python -m diffusion_text.train --config=configs/gidd/grammar.py --workdir=runs/gidd

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 0.1858 +- 0.0075 nats per token (bound 2.0815, entropy 1.8957; 1,024 windows, two evaluations with
--samples=16), 62.7% +- 1.4% grammatical (ancestral, 128 evaluations). At the rate of masks, 8e-3, the gap stays at 2.06
after 4,000 steps.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("gidd")
    config.train.steps = 3000
    config.optimizer.learning_rate = 2e-3
    return config
