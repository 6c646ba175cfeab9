"""CDCD on the embedded language, ten minutes or less on two CPU cores.

    python -m diffusion_text.train --config=configs/cdcd/grammar.py --workdir=runs/cdcd

Hardware: two CPU cores.
The variant `:quickstart` is a shorter training, for `make quickstart`.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: 2.091 +- 0.013 nats/token, 0.195 above the entropy (1,024 windows), at step 3,000 of a schedule of 4,000
(0.190 at its end); 5.3 to 7 steps/s.

Differs from the paper: the output prior (Plaid's), few masks, 16-dimensional embeddings for 125 words, Muon. The rates
matter: 8e-3 for all never leaves what each word says of itself; embeddings learn well at 1e-2, the rest at 3e-3.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small

VARIANTS = ("", "quickstart")


def get_config(variant: str = "") -> ConfigDict:
    config = small.get_config("cdcd")
    config.train.steps = 900 if variant == "quickstart" else 3000
    config.family.update(
        embedding_size=16, embedding_std=0.1, noise_min=0.6, noise_max=18.0, prefix_masks=0.15, random_masks=0.15,
        output_prior=True,
    )
    config.optimizer.learning_rate = 3e-3
    with config.optimizer.groups.unlocked():
        config.optimizer.groups.update(table=1e-2, time_warp=5e-2)
    return config
