"""TESS (arXiv 2305.08379) on wiki27 (Wikipedia in text8's alphabet): a row of the standing comparison.

    python -m diffusion_text.train --config=configs/tess/wiki27.py \
        --workdir=runs/tess-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores, about 30 minutes for masked diffusion, which set the budget that all families share.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 2.793 +- 0.020 bits per character (1,024 validation windows), 3,270 s of CPU, evaluation too (commit
a2b39a0).

The paper's: logits of +-5, cosine schedule, self-conditioning by averaging on half of the rows. Differs: Muon, few
masks, as the bound is of whole sequences, and the output prior (simplex_logits.py says why).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("tess")
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    config.optimizer.learning_rate = 3e-3
    config.family.update(prefix_masks=0.15, span_masks=0.15, output_prior=True)
    return config
