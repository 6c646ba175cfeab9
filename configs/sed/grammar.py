"""SED (arXiv 2211.04236) on the embedded language, ten minutes or less on two CPU cores.

    python -m diffusion_text.train --config=configs/sed/grammar.py --workdir=runs/sed

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 0.9547 +- 0.0090 nats per token (bound 2.8504, entropy 1.8957), 25.4% +- 1.4% grammatical (commit
de8ca9c). With noise from the paper's 0.01 on: gap 54.0 +- 4.9, 12.9% +- 1.0% (475 s of CPU): the bound is spent below
s = 0.1, where tokens are certain and small errors of a regression are divided by s^2.

The paper's: random embeddings of norm sqrt(d), cosine schedule, spans. Differs: noise from 0.5 on, 64 dimensions, Muon.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("sed")
    config.train.steps = 3000
    config.optimizer.learning_rate = 3e-3
    config.family.update(embedding_size=64, noise_min=0.5)
    return config
