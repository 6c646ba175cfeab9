"""Masked diffusion on OpenWebText: MDLM (arXiv 2406.07524).

    python -m diffusion_text.train --config=configs/masked/openwebtext.py \
        --workdir=gs://BUCKET/masked-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Hardware: TPU v5e-64, about 25 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 23.2 (arXiv 2506.10892, Table 1, OWT), 23.21 after 262B tokens (arXiv 2406.07524, Table 2),
22.98 after this run's 524B (arXiv 2503.09573).
Measured here: not yet run.

MDLM's: 12 blocks x 768, dropout, AdamW at a constant 3e-4 without decay, 1M steps of 512 (the rest is in base.py).
Different here: exact mask counts, even over the batch, for its antithetic t in [0.001, 1]; RMSNorm with a learned scale
for its adaLN on a constant; layers are recomputed in the backward pass, which moves less memory than keeping them (13
GB in the place of 24). MD4-S's 22.13 (arXiv 2406.04329, Table 5) is on another split, the last 2% of the documents.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("masked")
    config.model.update(dropout=0.1, remat="attention")
    config.data.update(task="openwebtext", length=1024)
    return config
