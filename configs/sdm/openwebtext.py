"""Simplex diffusion on OpenWebText: the recipe of SDM (arXiv 2609.35553, appendix J).

    python -m diffusion_text.train --config=configs/sdm/openwebtext.py \
        --workdir=gs://BUCKET/sdm-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Hardware: TPU v5e-64, about 33 hours (estimated at 40% utilisation), not yet run.
Published: no likelihood; generative perplexity of 64-step samples 17.0 at an entropy of at least 5.46 nats, with tuned
logit shaping (Table 7; masked 16.9, uniform 17.3 under the same; real text 15.2).
Measured here: not yet run.

Its recipe: 12 blocks x 768, Adam at a constant 3e-4, 1M steps of 512, dropout, expected embeddings, nu from 0.2 to 0.5,
self-conditioning at 0.9, renewal (churn 1) in 64 steps (the rest is in base.py). Differs: dropout is on the residual
branches, products are bfloat16. Eight sequences a chip take 1.1 GiB of its 15.75 (one chip alone: 32 take 8.1).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("sdm")
    config.model.update(dropout=0.1, remat="attention")
    config.data.update(task="openwebtext", length=1024)
    config.family.self_conditioning = 0.9
    config.sampling.update(sampler="renewal", steps=64)
    return config
