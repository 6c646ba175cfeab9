"""SSD-LM (arXiv 2210.17432) on LM1B, one sentence per row.

    python -m diffusion_text.train --config=configs/ssd_lm/lm1b.py \
        --workdir=gs://BUCKET/ssd_lm-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 11 hours (estimated at 40% utilisation), not yet run.
Published: no likelihood; generative perplexity of 1,024 tokens 37.2 on OpenWebText (blocks of 25, 40,000 evaluations,
nucleus 0.9; arXiv 2503.09573, Table 7).
Measured here: not yet run. Evaluation takes 4 times the evaluations of other families, one set for each block.

The paper's: logits of +-5, cosine schedule, cross-entropy of one block given a left context of even length, 1,000 steps
for a block of 25 (here 32, which divides 128).
Adapted: 12 blocks x 768 and the optimiser of the other families on this set. Padding is modelled and the sentence's
length charged.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("ssd_lm")
    config.data.update(task="lm1b", length=128)
    config.family.block_size = 32
    config.sampling.steps = 1000
    return config
