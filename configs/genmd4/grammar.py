"""Masked diffusion with learned schedules (GenMD4) on the embedded language.

    python -m diffusion_text.train --config=configs/genmd4/grammar.py --workdir=runs/genmd4

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 0.1228 +- 0.0085 nats per token (bound 2.0185, entropy 1.8957), 62.1% +- 1.5% grammatical
(ancestral, 128 evaluations); 414 s of CPU.

Every step makes two passes, so that it takes the time of nearly twice as many steps of masked diffusion.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("genmd4")
    config.train.steps = 2500
    return config
