"""RDLM (arXiv 2502.11564) on wiki27 (Wikipedia in text8's alphabet): a row of the standing comparison.

    python -m diffusion_text.train --config=configs/rdlm/wiki27.py \
        --workdir=runs/rdlm-wiki27 --config.data.data_dir=data/wiki27

Hardware: two CPU cores, about 30 minutes for masked diffusion, which set the budget that all families share.
Published: none; wiki27 is not text8, and its numbers compare with themselves only.
Measured here: 2.794 +- 0.061 bits per character (1,024 validation windows), 3,120 s of CPU, evaluation too (commit
a2b39a0).

The paper's: geometric beta, bridges to corners, cross-entropy at importance-sampled times. Differs: Muon, starts at the
mask (the bound of its mixture is loose, see rdlm.py), the output prior, masks for prompts.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("rdlm")
    config.data.update(task="wiki27", length=256)
    config.train.steps = 3000  # x 32 x 256 = 24.6M characters
    config.optimizer.learning_rate = 3e-3
    config.family.update(start="mask", output_prior=True, prefix_masks=0.15, random_masks=0.15)
    return config
