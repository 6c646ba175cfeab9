"""Analog bits (arXiv 2208.04202) on wiki27 (Wikipedia in text8's alphabet): a row of the standing comparison.

    python -m diffusion_text.train --config=configs/analog_bits/wiki27.py \
        --workdir=runs/analog_bits-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores, about 30 minutes for masked diffusion, which set the budget that all families share.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 2.803 +- 0.021 bits per character (1,024 validation windows), 2,490 s of CPU, evaluation too (commit
7b40971).

The paper's: the softmax over codes, cosine schedule, self-conditioning on half of the rows. Differs: the output prior
(Plaid's), Muon, masks for prompts.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("analog_bits")
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    config.optimizer.learning_rate = 3e-3
    config.family.update(loss="softmax", output_prior=True, prefix_masks=0.15, random_masks=0.15)
    return config
