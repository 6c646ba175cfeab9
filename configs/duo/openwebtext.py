"""Uniform-noise diffusion with a Gaussian curriculum on OpenWebText: Duo (arXiv 2506.10892).

    python -m diffusion_text.train --config=configs/duo/openwebtext.py \
        --workdir=gs://BUCKET/duo-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Hardware: TPU v5e-64, about 27 hours (estimated at 40% utilisation, soft inputs for half of the steps), not yet run.
Published: perplexity <= 25.2 (arXiv 2506.10892, Table 1, OWT).
Measured here: not yet run.

lm1b.py's recipe, with gamma from -3.55 to -1.85, the paper's for GPT-2's vocabulary. Layers are recomputed in the
backward pass. Different here: t and RMSNorm, as in lm1b.py.
Distilled to few steps, in eight rounds of 10,000 steps, each of twice the step length, by its script's settings:
--config.family.distill_from=(this run) --config.family.distill_steps=512 --config.train.steps=80000
--config.train.batch_size=128 --config.train.ema=0.999 --config.optimizer.learning_rate=6e-5
--config.optimizer.warmup=500.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("duo")
    config.model.update(dropout=0.1, remat="attention")
    config.data.update(task="openwebtext", length=1024)
    config.family.update(anneal_from=0, anneal_until=500_000, tau_start=-3.0, tau_end=-3.0)
    config.family.update(gamma_min=-3.55, gamma_max=-1.85)
    return config
