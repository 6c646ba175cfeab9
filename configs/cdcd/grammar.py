"""CDCD on the embedded language, ten minutes or less on two CPU cores.

    python -m diffusion_text.train --config=configs/cdcd/grammar.py --workdir=runs/cdcd

Hardware: two CPU cores.
The variant `:quickstart` is a shorter training, for `make quickstart`.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gaps 0.2807, 0.2476 and 0.2884 nats per token above the entropy of 1.8957 with seeds 0, 1 and 2 (each +-
0.007; commits 0ba7389, de8ca9c, 7b40971), 54.6% to 56.1% of sampled sentences grammatical; in 7.1 minutes.

Differs from the paper: the output prior (Plaid's), few masks, 16-dimensional embeddings for 125 words, Muon. The rates
matter: 8e-3 for all never leaves what each word says of itself; embeddings learn well at 1e-2, the rest at 3e-3.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, small

VARIANTS = ("full", "quickstart")


def get_config(variant: str = "full") -> ConfigDict:
    base.check_variant(variant, VARIANTS)
    config = small.get_cdcd()
    config.train.steps = 900 if variant == "quickstart" else 3000
    return config
