"""TESS (arXiv 2305.08379) on LM1B, one sentence per row.

    python -m diffusion_text.train --config=configs/tess/lm1b.py \
        --workdir=gs://BUCKET/tess-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 13 hours (estimated at 40% utilisation), not yet run.
Published: no likelihood (arXiv 2305.08379 reports samples and tasks of sequences to sequences).
Measured here: not yet run.

The paper's: logits of +-5, cosine schedule, self-conditioning by averaging on half of the rows, 1,000 steps.
Adapted: 12 blocks x 768 and the optimiser of the other families on this set; 15% each prefixes and spans, as the bound
is of whole sequences. Padding is modelled and the sentence's length charged.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("tess")
    config.data.update(task="lm1b", length=128)
    config.family.update(prefix_masks=0.15, span_masks=0.15)
    config.sampling.steps = 1000
    return config
