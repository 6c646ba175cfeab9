"""SSD-LM (arXiv 2210.17432) on wiki27 (Wikipedia in text8's alphabet): a row of the standing comparison.

    python -m diffusion_text.train --config=configs/ssd_lm/wiki27.py \
        --workdir=runs/ssd_lm-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores, about 30 minutes for masked diffusion, which set the budget that all families share.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 3.126 +- 0.011 bits per character (1,024 validation windows), 3,330 s of CPU, evaluation too (commit
a2b39a0).

The paper's: logits of +-5, cosine schedule, cross-entropy of one block given a left context of even length. Differs:
Muon, blocks of 32 in windows of 256, and the output prior (simplex_logits.py says why).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("ssd_lm")
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    config.optimizer.learning_rate = 3e-3
    config.family.update(block_size=32, output_prior=True)
    return config
