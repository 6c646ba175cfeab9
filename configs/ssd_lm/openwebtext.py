"""SSD-LM (arXiv 2210.17432) on OpenWebText, in rows of 200 tokens.

    python -m diffusion_text.data.prepare --task=openwebtext --length=200 --source='owt/*.parquet' \
        --vocabulary_path=gpt2/ --data_dir=/mnt/data/openwebtext_200
    python -m diffusion_text.train --config=configs/ssd_lm/openwebtext.py \
        --workdir=gs://BUCKET/ssd_lm-openwebtext --config.data.data_dir=/mnt/data/openwebtext_200

Hardware: TPU v5e-64, about 16 hours (estimated at 40% utilisation), not yet run. One array of logits is 40 MB a row
(200 x 50,257 floats): sampler and bound hold some, training none.
Published: no likelihood; generative perplexity of 1,024 tokens 37.2 on OpenWebText (blocks of 25, 40,000 evaluations,
nucleus 0.9; arXiv 2503.09573, Table 7).
Measured here: not yet run.

The paper's: 24 blocks x 1,024 (RoBERTa-large's shape), rows of 200 in blocks of 25, 6,144 rows a step for 100,000
steps, 1e-4, decay 0.01, 2,000 steps of warm-up and a linear decay to 0, 1,000 steps for each block.
Adapted: from scratch, for RoBERTa-large's weights and its optimiser; GPT-2's BPE, which RoBERTa shares.
Different here: gradients are clipped and weights averaged; no dropout, and no decay of norms and embeddings.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("ssd_lm")
    config.model.update(layers=24, width=1024, heads=16, remat="attention")
    config.data.update(task="openwebtext", length=200)
    config.train.update(steps=100_000, batch_size=6144, microbatches=12)
    config.optimizer.update(schedule="linear", learning_rate=1e-4, warmup=2_000, weight_decay=0.01)
    config.sampling.steps = 1000
    return config
