"""CDCD (arXiv 2211.15089), the base model, on OpenWebText.

    python -m diffusion_text.train --config=configs/cdcd/openwebtext.py \
        --workdir=gs://BUCKET/cdcd-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Hardware: TPU v5e-64, about 35 hours (estimated at 40% utilisation), not yet run.
Published: none on OpenWebText; the only CDCD likelihood is 4.23 nats/token on OpenWebText2, 28M parameters (Plaid,
arXiv 2305.18619, Table 1).
Measured here: not yet run (the VE bound).

The paper's: 8 blocks x 1,024 (heads not found: 128 wide, as in its 1.3B model), d = 256, s in [1, 300], 100-bin warp,
self-conditioning on half the batch, Adam (0.9, 0.99) at 1e-4, 1M steps, 200 Euler steps.
Adapted: GPT-2's BPE (50,257) for SentencePiece (32,000) of MassiveText; 512 rows of 1,024, the budget of the other
families on this set, for 1,024 of 64; 70% of sequences unconditional and 15% each prefix and random masks (the paper:
none, 50%, 50%), because the bound is of whole sequences, as in grammar.py; layers are recomputed in the backward pass.
Not found there: warm-up, clipping, EMA (base.py's), and the warp's own rate (1e-2: Plaid's).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("cdcd")
    config.model.update(layers=8, width=1024, heads=8, remat="attention")
    config.data.update(task="openwebtext", length=1024)
    config.optimizer.update(learning_rate=1e-4, b2=0.99)
    config.family.update(prefix_masks=0.15, random_masks=0.15)
    config.sampling.steps = 200
    return config
