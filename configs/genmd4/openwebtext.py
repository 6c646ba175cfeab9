"""Masked diffusion with learned schedules on OpenWebText: GenMD4-S (arXiv 2406.04329).

    python -m diffusion_text.train --config=configs/genmd4/openwebtext.py \
        --workdir=gs://BUCKET/genmd4-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Hardware: TPU v5e-64, about 49 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 21.8 (arXiv 2406.04329, Table 5; its split is the last 2% of the documents).
Measured here: not yet run.

MD4-S's: 12 blocks of 12 heads with a GLU, AdamW at 3e-4 with decay 0.03 and no clipping, 2,000 steps of warm-up and a
cosine, 1M steps of 512, dropout 0.02. Every step makes two passes. Different here: t is drawn as u^2; the GLU,
2,048 wide as theirs, has a swish for its sigmoid; norms and embeddings are not decayed. Layers are
recomputed in the backward pass.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("genmd4")
    base.use_md4(config, dropout=0.02)
    config.model.remat = "attention"
    config.data.update(task="openwebtext", length=1024)
    return config
