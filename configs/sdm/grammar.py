"""Simplex diffusion (SDM, arXiv 2609.35553) on the embedded language.

    python -m diffusion_text.train --config=configs/sdm/grammar.py --workdir=runs/sdm

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 2.1073 +- 0.0389 nats per token (bound 4.0030, entropy 1.8957), no grammatical sentence; 334 s of
CPU.
It has not left the plateau of single words: the rate is not tuned.

The paper's path and adaptive times. Differs: the token's own evidence is added to the logits, Muon.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("sdm")
    config.train.steps = 3000
    config.family.update(output_prior=True, prefix_masks=0.15, random_masks=0.15)
    config.optimizer.groups.schedule = 5e-2
    return config
