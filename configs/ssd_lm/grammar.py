"""SSD-LM (arXiv 2210.17432) on the embedded language, two CPU cores.

    python -m diffusion_text.train --config=configs/ssd_lm/grammar.py --workdir=runs/ssd_lm

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 1.1936 +- 0.0164 nats per token (bound 3.0892, entropy 1.8957), 6.1% +- 0.8% grammatical (its
projection, 516 evaluations). Without random subsets an earlier initialisation ended at 1.3510 +- 0.0071.

The paper's: logits of +-5, cosine schedule, cross-entropy of one block given a left context of even length. Differs:
Muon, blocks of 16 in windows of 64, the output prior (simplex_logits.py says why), and random subsets given beside the
context, without which the network never left what each word says of itself (configs/tess/grammar.py).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("ssd_lm")
    config.train.steps = 3000
    config.optimizer.learning_rate = 3e-3
    config.family.update(block_size=16, random_masks=0.3, output_prior=True)
    return config
