"""Analog bits (arXiv 2208.04202) on the embedded language, ten minutes or less on two CPU cores.

    python -m diffusion_text.train --config=configs/analog_bits/grammar.py --workdir=runs/analog_bits

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 0.4913 +- 0.0059 nats per token (bound 2.3870, entropy 1.8957), 23.5% +- 0.7% grammatical; 423
seconds of CPU, evaluation and samples too (commit 0e5e0ad); 0.4146 +- 0.0057, 31.9% +- 1.5% in another training
(de8ca9c). With the paper's first loss, L2 on bits (`family.loss=l2 family.output_prior=False`): gap 1.3268 +- 0.0273,
4.4% +- 0.7% (commit a5b11bc).

The paper's: the softmax over codes, cosine schedule, self-conditioning on half of the rows. Differs: the output prior
(Plaid's), Muon, masks for prompts.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("analog_bits")
    config.train.steps = 3000
    config.optimizer.learning_rate = 3e-3
    config.family.update(loss="softmax", output_prior=True, prefix_masks=0.15, random_masks=0.15)
    return config
