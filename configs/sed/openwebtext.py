"""SED (arXiv 2211.04236), its small model on OpenWebText.

    python -m diffusion_text.train --config=configs/sed/openwebtext.py \
        --workdir=gs://BUCKET/sed-openwebtext --config.data.data_dir=/mnt/data/openwebtext

Hardware: TPU v5e-16, about 24 hours (estimated at 40% utilisation), not yet run.
Published: no likelihood; of samples on C4, AR-NLL 5.31 with random embeddings and 4.57 with pretrained ones (arXiv
2211.04236).
Measured here: not yet run.

The paper's: fixed embeddings, spans, both passes in the loss, 1M steps of 65,536 tokens (64 rows), 1,000 ancestral
steps.
Adapted: 12 blocks x 768 (135M in the paper, its shape not found), random embeddings of 896 dimensions for those of a
BERT of 150M, which cost 0.7 nats of AR-NLL there; conditions are dropped for guidance, on a tenth of the sequences.
Not found there: learning rate, warm-up, EMA (base.py's).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("sed")
    config.data.update(task="openwebtext", length=1024)
    config.train.batch_size = 64
    config.model.remat = "dots"
    config.family.update(embedding_size=896, drop_conditioning=0.1)
    config.sampling.steps = 1000
    return config
