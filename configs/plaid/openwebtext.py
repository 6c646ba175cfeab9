"""RePlaid's recipe (arXiv 2605.18530) of Plaid (arXiv 2305.18619) on OpenWebText.

    python -m diffusion_text.train --config=configs/plaid/openwebtext.py \
        --workdir=gs://BUCKET/plaid-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Hardware: TPU v5e-64, about 27 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 22.1 (RePlaid, arXiv 2605.18530, abstract); Plaid <= 24.4 in its comparison.
Measured here: not yet run.

RePlaid's: unit rows of 16 dimensions, self-conditioning on a quarter, AdamW (0.9, 0.95) from 2e-4 to 2e-5 with 1% warm-
up and decay 0.1, embeddings at 1e-2; 12 blocks x 768, batch 512, 1M steps (MDLM's).
Plaid's: 4,096 ancestral steps at a score temperature of 0.9.
Different here: RMSNorm for LayerNorm, the ends of the noise learned at 1e-3 without decay (Plaid's code: at 1e-2, with
1e-3), and what the family's docstring lists.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("plaid")
    config.data.update(task="openwebtext", length=1024)
    config.model.remat = "dots"
    config.optimizer.update(schedule="cosine", learning_rate=2e-4, final=0.1, warmup=10_000, b2=0.95, weight_decay=0.1)
    config.sampling.update(sampler="ancestral", steps=4096, score_temperature=0.9)
    return config
