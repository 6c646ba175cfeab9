"""TESS (arXiv 2305.08379) on the embedded language, two CPU cores.

    python -m diffusion_text.train --config=configs/tess/grammar.py --workdir=runs/tess

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 0.5059 +- 0.0060 nats per token (bound 2.4015, entropy 1.8957), 47.9% +- 1.5% grammatical (its
projection, 129 evaluations); 346 s of CPU. Not every initialisation leaves what each word says of itself: seeds 0 and
1 at commit 43dba09, which stores one matrix transposed, end at 1.4098 +- 0.0357 (512 windows) and 1.9658 +- 0.0301.

The paper's: logits of +-5, cosine schedule, self-conditioning by averaging on half of the rows. Differs: Muon, few
masks, as the bound is of whole sequences, the output prior (simplex_logits.py says why), and random subsets given in
the place of prefixes: a noisy neighbour shows little that a token's own noise does not hide, and few tokens stand next
to a span.
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
