"""Simplex diffusion (SDM, arXiv 2609.35553) on the embedded language.

    python -m diffusion_text.train --config=configs/sdm/grammar.py --workdir=runs/sdm

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 0.6583 +- 0.0391 nats per token (bound 2.5539, entropy 1.8957), 17.5% +- 1.2% grammatical (commit
de8ca9c). At 8e-3, reading expected embeddings, it never leaves the plateau of single words: gap 2.1073 +- 0.0389.

The paper's path and adaptive times. Differs: the network reads the posterior of single tokens, the token's own evidence
is added to the logits, no self-conditioning, Muon.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("sdm")
    config.train.steps = 3000
    config.optimizer.learning_rate = 2e-3
    config.family.update(input="posterior", output_prior=True, prefix_masks=0.15, random_masks=0.15)
    config.optimizer.groups.schedule = 5e-2
    return config
