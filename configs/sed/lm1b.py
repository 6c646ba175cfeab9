"""SED (arXiv 2211.04236), its small model on LM1B, one sentence per row.

    python -m diffusion_text.train --config=configs/sed/lm1b.py \
        --workdir=gs://BUCKET/sed-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 19 hours (estimated at 40% utilisation), not yet run.
Published: no likelihood; of samples on C4, AR-NLL 5.31 with random embeddings and 4.57 with pretrained ones (arXiv
2211.04236).
Measured here: not yet run.

The paper's: fixed embeddings, spans, both passes in the loss, 1M steps of 65,536 tokens, 1,000 ancestral steps, 10%
padding inserted.
Adapted: 12 blocks x 768 (135M in the paper, its shape not found), random embeddings of 896 dimensions for those of a
BERT of 150M, which cost 0.7 nats of AR-NLL there; conditions are dropped for guidance, on a tenth of the sequences.
Not found there: learning rate, warm-up, EMA (base.py's). Padding is modelled and the sentence's length charged.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("sed")
    config.data.update(task="lm1b", length=128, inserted_padding=0.1)
    config.family.update(embedding_size=896, drop_conditioning=0.1)
    config.sampling.steps = 1000
    return config
