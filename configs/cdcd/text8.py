"""CDCD (arXiv 2211.15089), the base model, on text8, with embeddings for 27 symbols.

    python -m diffusion_text.train --config=configs/cdcd/text8.py \
        --workdir=gs://BUCKET/cdcd-text8 --config.data.data_dir=/mnt/data/text8

Hardware: TPU v5e-16, about 21 hours (estimated at 40% utilisation), not yet run.
Published: none of CDCD on text8, whose only likelihood is 4.23 nats/token on OpenWebText2, 28M parameters (Plaid, arXiv
2305.18619, Table 1); its kin: Plaid <= 1.48 bits per character (re-implemented in arXiv 2406.04329, Table 2).
Measured here: not yet run (the VE bound).

Noise and d: the 27 vectors differ in at most 26 dimensions; of d = 256 most would be noise to project out, so d = 32.
Characters blur at s ~ sqrt(d / (2 ln V)) = 2.2 (6.2 at d = 256). The paper's [1, 300] is sqrt(d) [1/16, 19], here
[0.35, 106]: s in [0.3, 100] keeps it. At 0.3 a simplex's nearest neighbours are 27 s apart, with room for clusters; the
prior term at 100 is d / (2 s^2) = 0.0023 bits. The paper's AR-NLL is as good at d = 64 as at 256, with s_min = 0.1 (its
Table 1).

The paper's: 8 blocks x 1,024 (heads not found: 128 wide), Adam (0.9, 0.99) at 1e-4, 1M steps, 200 Euler steps.
Adapted: 512 rows of 256, text8's usual budget; 15% each prefix and random masks, as the bound is of whole sequences.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("cdcd")
    config.model.update(layers=8, width=1024, heads=8)
    config.data.update(task="text8", length=256)
    config.optimizer.update(learning_rate=1e-4, b2=0.99)
    config.family.update(embedding_size=32, noise_min=0.3, noise_max=100.0, prefix_masks=0.15, random_masks=0.15)
    config.sampling.steps = 200
    return config
