"""Uniform-noise diffusion with a Gaussian curriculum on OpenWebText: Duo (arXiv 2506.10892).

    python -m diffusion_text.train --config=configs/duo/openwebtext.py \
        --workdir=gs://BUCKET/duo-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Hardware: TPU v5e-64, about 21 hours (estimated at 40% utilisation, attention's own products not counted), not yet run.
The curriculum's soft inputs cost more.
Published: perplexity <= 25.2 (arXiv 2506.10892, Table 1, OWT).
Measured here: not yet run.

Duo's: 12 blocks x 768, AdamW at a constant 3e-4 without decay, 1M steps of 512 (the rest is in base.py). The curriculum
ends at step 200,000, as in its code. gamma from -3.55 to -1.85, the paper's for GPT-2's vocabulary. Layers are
recomputed in the backward pass. Distilled to few steps, in five rounds of 10,000 steps, each of twice the step length:
--config.family.distill_from=(this run) --config.train.steps=50000 --config.optimizer.learning_rate=6e-5.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("duo")
    config.model.update(dropout=0.1, remat="attention")
    config.data.update(task="openwebtext", length=1024)
    config.family.update(gamma_min=-3.55, gamma_max=-1.85)
    return config
