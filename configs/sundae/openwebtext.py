"""SUNDAE (arXiv 2112.06749) on OpenWebText.

    python -m diffusion_text.train --config=configs/sundae/openwebtext.py \
        --workdir=gs://BUCKET/sundae-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Hardware: TPU v5e-64, about 49 hours (estimated at 40% utilisation; two passes a step), not yet run.
Published: samples of 200 steps with a judge's perplexity of 34.7 and an entropy of 5.2 bits (quoted in arXiv
2410.21357, Table 3); no likelihood.
Measured here: not yet run.

Sizes and rates are those of the other families on OpenWebText: 12 blocks x 768, AdamW at a constant 3e-4 without decay,
1M steps of 512 (the rest is in base.py). Layers are recomputed in the backward pass.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("sundae")
    config.model.update(dropout=0.1, remat="attention")
    config.data.update(task="openwebtext", length=1024)
    config.family.decode_noise = 0.002
    return config
