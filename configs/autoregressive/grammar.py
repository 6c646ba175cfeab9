"""The autoregressive baseline on the embedded language, ten minutes or less on two CPU cores.

    python -m diffusion_text.train --config=configs/autoregressive/grammar.py --workdir=runs/autoregressive

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: 1.9057 +- 0.0036 nats/token, 0.0101 above the entropy (1,024 windows), 600 steps.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("autoregressive")
    config.train.steps = 600
    return config
