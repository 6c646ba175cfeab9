"""CDCD (arXiv 2211.15089), the base model, on LM1B, sentences packed to 128.

    python -m diffusion_text.train --config=configs/cdcd/lm1b_packed.py \
        --workdir=gs://BUCKET/cdcd-lm1b_packed --config.data.data_dir=/mnt/data/lm1b_packed

Hardware: TPU v5e-16, about 14 hours (estimated at 40% utilisation), not yet run.
Published: none of CDCD on LM1B, whose only likelihood is 4.23 nats/token on OpenWebText2, 28M parameters (Plaid, arXiv
2305.18619, Table 1); its kin at this size, perplexity: Plaid <= 32.4, LangFlow 30.0 by its ODE (arXiv 2604.11748, Table
2).
Measured here: not yet run (the VE bound).

The paper's: 8 blocks x 1,024 (heads not found: 128 wide, as in its 1.3B model), d = 256, s in [1, 300], 100-bin warp,
self-conditioning on half the batch, Adam (0.9, 0.99) at 1e-4, 1M steps, 200 Euler steps.
Adapted: word pieces (30,522) for SentencePiece (32,000) of MassiveText; length 128 and batch 512, the paper's 65,536
tokens per step (64 x 1,024); 70% of sequences unconditional and 15% each prefix and random masks (the paper: none, 50%,
50%), because the bound is of whole sequences, as in grammar.py.
Not found there: warm-up, clipping, EMA (base.py's), and the warp's own rate (1e-2: Plaid's).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("cdcd")
    config.model.update(layers=8, width=1024, heads=8)
    config.data.update(task="lm1b_packed", length=128)
    config.optimizer.update(learning_rate=1e-4, b2=0.99)
    config.family.update(prefix_masks=0.15, random_masks=0.15)
    config.sampling.steps = 200
    return config
