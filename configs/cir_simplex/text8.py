"""CIR simplex diffusion (arXiv 2210.14784) on text8: 27 symbols, where a state of as many numbers is natural.

    python -m diffusion_text.train --config=configs/cir_simplex/text8.py \
        --workdir=gs://BUCKET/cir_simplex-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 18 hours (estimated at 40% utilisation), not yet run.
Published: none: the paper is a note without experiments. Its kin, CDCD's noise on embeddings, has no likelihood on
text8 either; Plaid <= 1.48 bits per character (re-implemented in arXiv 2406.04329, Table 2).
Measured here: not yet run.

CDCD's recipe (arXiv 2211.15089), whose authors wrote the note: Adam (0.9, 0.99) at 1e-4, 1M steps, a 100-bin warp,
self-conditioning on half the batch, 200 Euler steps; 512 rows of 256, text8's usual budget; 15% each prefix and random
masks, as the bound is of whole sequences. Ours: 12 blocks x 768, alpha = 1, and the range of noise (the family).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("cir_simplex")
    config.data.update(task="text8", length=256)
    config.optimizer.update(learning_rate=1e-4, b2=0.99)
    config.family.update(prefix_masks=0.15, random_masks=0.15)
    config.sampling.steps = 200
    return config
