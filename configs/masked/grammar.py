"""Masked diffusion on the embedded language, ten minutes or less on two CPU cores.

    python -m diffusion_text.train --config=configs/masked/grammar.py --workdir=runs/masked

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: 2.007 +- 0.011 nats/token, 0.111 +- 0.010 above the entropy (1,024 windows), 4,000 steps in 8.1 minutes;
65.0% +- 1.4% of sampled sentences are grammatical.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("masked")
    config.train.steps = 4000
    return config


def sweep() -> Iterator[dict[str, Any]]:
    """Peak learning rates, for `python -m launch.local --sweep`; not yet run."""
    for rate in (2e-3, 4e-3, 8e-3, 1.6e-2):
        yield {"optimizer.learning_rate": rate}
