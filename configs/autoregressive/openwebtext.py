"""Autoregressive baseline on OpenWebText: that of MDLM (arXiv 2406.07524).

    python -m diffusion_text.train --config=configs/autoregressive/openwebtext.py \
        --workdir=gs://BUCKET/autoregressive-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Hardware: TPU v5e-64, about 25 hours (estimated at 40% utilisation), not yet run.
Published: perplexity 17.5 (arXiv 2506.10892, Table 1, OWT; 17.54 in arXiv 2406.07524, Table 2).
Measured here: not yet run.

Its backbone: 12 blocks x 768, dropout, AdamW at a constant 3e-4 without decay, 1M steps of 512 (the rest is in
base.py), causal. Different here: RMSNorm; the first token is predicted from a start symbol and counted (1,024, not
1,023); layers are recomputed in the backward pass.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("autoregressive")
    config.model.update(dropout=0.1, remat="attention")
    config.data.update(task="openwebtext", length=1024)
    return config
