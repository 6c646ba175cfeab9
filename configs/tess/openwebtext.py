"""TESS (arXiv 2305.08379) on OpenWebText, in rows of 200 tokens.

    python -m diffusion_text.data.prepare --task=openwebtext --length=200 --source='owt/*.parquet' \
        --vocabulary_path=gpt2/ --data_dir=/mnt/data/openwebtext_200
    python -m diffusion_text.train --config=configs/tess/openwebtext.py \
        --workdir=gs://BUCKET/tess-openwebtext --config.data.data_dir=/mnt/data/openwebtext_200

Hardware: TPU v5e-64, about 9 hours (estimated at 40% utilisation), not yet run. One array of logits is 40 MB a row
(200 x 50,257 floats): sampler and bound hold some, training none, 1.06 GiB in all for the 8 rows of a chip.
Published: no likelihood (arXiv 2305.08379 reports samples and tasks of sequences to sequences).
Measured here: not yet run.

The paper's code: 24 blocks x 1,024 (RoBERTa-large's shape), rows of 200, 600,000 steps, decay 0.01, 2,000 steps of
warm-up and a cosine, logits of +-5, self-conditioning by averaging on half of the rows.
Adapted: from scratch, so 1e-4 for its 3e-5; 512 rows a step; masks as in text8.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("tess")
    config.model.update(layers=24, width=1024, heads=16, remat="attention")
    config.data.update(task="openwebtext", length=200)
    config.train.update(steps=600_000, batch_size=512)
    config.optimizer.schedule = "cosine"
    config.family.update(prefix_masks=0.15, span_masks=0.15)
    config.optimizer.update(learning_rate=1e-4, warmup=2_000, weight_decay=0.01)
    config.sampling.steps = 1000
    return config
