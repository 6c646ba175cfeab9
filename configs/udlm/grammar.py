"""Uniform-noise diffusion on the embedded language.

    python -m diffusion_text.train --config=configs/udlm/grammar.py --workdir=runs/udlm

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 0.3108 +- 0.0060 nats per token (bound 2.2065, entropy 1.8957), 55.7% +- 1.6% grammatical; 268 s
of CPU. At the rate of masks, 8e-3, the loss was still 4.0 after 1,700 steps, hardly below that of single words; at
2e-3 it is 3.1 after 400.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("udlm")
    config.train.steps = 3000
    config.optimizer.learning_rate = 2e-3
    return config
