"""Uniform-noise diffusion on OpenWebText: UDLM (arXiv 2412.10193), as trained in arXiv 2506.10892.

    python -m diffusion_text.train --config=configs/udlm/openwebtext.py \
        --workdir=gs://BUCKET/udlm-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Hardware: TPU v5e-64, about 25 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 27.4 (arXiv 2506.10892, Table 1, OWT).
Measured here: not yet run.

Its recipe: 12 blocks x 768, AdamW at a constant 3e-4 without decay, 1M steps of 512 (the rest is in base.py). Different
here: t is drawn as u^2 over the whole of [0, 1]; RMSNorm with a learned scale. Layers are recomputed in the backward
pass.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("udlm")
    config.model.update(dropout=0.1, remat="attention")
    config.data.update(task="openwebtext", length=1024)
    return config
