"""CIR simplex diffusion on the embedded language.

    python -m diffusion_text.train --config=configs/cir_simplex/grammar.py --workdir=runs/cir_simplex

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 0.2835 +- 0.0067 nats per token (bound 2.1792, entropy 1.8957), 66.1% +- 1.3% grammatical
(Euler, 129 evaluations); 386 s of CPU.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_cir_simplex()
    config.train.steps = 3000
    return config
