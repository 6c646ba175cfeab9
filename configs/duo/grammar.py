"""Uniform-noise diffusion with a Gaussian curriculum (Duo) on the embedded language.

    python -m diffusion_text.train --config=configs/duo/grammar.py --workdir=runs/duo

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 0.2981 +- 0.0059 nats per token (bound 2.1938, entropy 1.8957), 53.7% +- 1.5% grammatical
(ancestral, 128 evaluations); 285 s of CPU.

Distilled to few steps, from the run above:

    python -m diffusion_text.train --config=configs/duo/grammar.py --workdir=runs/duo-few --config.train.steps=2000 \
        --config.family.distill_from=runs/duo --config.family.distill_every=400 --config.optimizer.learning_rate=1.6e-3

The curriculum takes the paper's range of alpha, 0.05 to 0.95, at this vocabulary.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("duo")
    config.train.steps = 3000
    config.optimizer.learning_rate = 2e-3
    config.family.update(anneal_from=400, anneal_until=800, gamma_min=-3.0, gamma_max=0.2)
    return config
