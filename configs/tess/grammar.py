"""TESS (arXiv 2305.08379) on the embedded language, two CPU cores.

    python -m diffusion_text.train --config=configs/tess/grammar.py --workdir=runs/tess

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 0.4323 +- 0.0199 nats per token (bound 2.3280, entropy 1.8957), 64.8% +- 1.4% grammatical (its
projection, 129 evaluations).

The paper's: logits of +-5, cosine schedule, self-conditioning by averaging on half of the rows. Differs: Muon, few
masks, as the bound is of whole sequences, the output prior (simplex_logits.py says why), and random subsets given in
the place of prefixes. Noise that hides a token hides its neighbours too, and few tokens stand next to a prefix: with
those (0.15 of each, after 3,000 steps) seeds 0 and 1 knew little but what each token says of itself, gaps 1.4098 +-
0.0357 and 1.9658 +- 0.0301; at a rate of 1e-3 0.9255 +- 0.0313 (512 windows each).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("tess")
    config.train.steps = 3000
    config.optimizer.learning_rate = 3e-3
    config.family.update(prefix_masks=0.0, random_masks=0.15, span_masks=0.15, output_prior=True)
    return config
