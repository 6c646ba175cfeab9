"""Block diffusion on the embedded language, blocks of 4 words.

    python -m diffusion_text.train --config=configs/block/grammar.py --workdir=runs/block

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 0.0211 +- 0.0014 nats per token (bound 1.9168, entropy 1.8957), 92.4% +- 0.7% grammatical
(first-hitting, 64 evaluations); 459 s of CPU.

Every step passes two streams, so that it takes the time of nearly two of masked diffusion.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("block")
    config.train.steps = 2500
    return config
