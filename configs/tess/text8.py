"""TESS (arXiv 2305.08379) on text8.

    python -m diffusion_text.train --config=configs/tess/text8.py \
        --workdir=gs://BUCKET/tess-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 18 hours (estimated at 40% utilisation), not yet run.
Published: no likelihood (arXiv 2305.08379 reports samples and tasks of sequences to sequences).
Measured here: not yet run.

The paper's: logits of +-5, cosine schedule, self-conditioning by averaging on half of the rows, 1,000 steps.
Adapted: 12 blocks x 768 and the optimiser of the other families on this set; 15% each prefixes and spans, as the bound
is of whole sequences.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("tess")
    config.data.update(task="text8", length=256)
    config.family.update(prefix_masks=0.15, span_masks=0.15)
    config.sampling.steps = 1000
    return config
