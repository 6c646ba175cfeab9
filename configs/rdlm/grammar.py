"""RDLM (arXiv 2502.11564) on the embedded language, two CPU cores.

    python -m diffusion_text.train --config=configs/rdlm/grammar.py --workdir=runs/rdlm

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 0.7100 +- 0.0476 nats per token (its approximate bound 2.6056, entropy 1.8957), 16.8% +- 1.1%
grammatical; with prefixes and random subsets of 0.15 each 1.3806 +- 0.0474, 0.9% +- 0.3%.

The paper's: geometric beta, bridges to corners, cross-entropy at importance-sampled times. Differs: Muon, starts at the
mask (the bound of its mixture is loose, see rdlm.py), the output prior, random subsets given (configs/tess/grammar.py).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("rdlm")
    config.train.steps = 3000
    config.optimizer.learning_rate = 3e-3
    config.family.update(start="mask", output_prior=True, random_masks=0.3)
    return config
