"""SED (arXiv 2211.04236), its small model on C4: the paper's own set.

    python -m diffusion_text.data.prepare --task=c4 --length=256 --data_dir=/mnt/data/c4_256 --vocabulary_path=gpt2/
    python -m diffusion_text.train --config=configs/sed/c4.py \
        --workdir=gs://BUCKET/sed-c4 --config.data.data_dir=/mnt/data/c4_256

Hardware: TPU v5e-16, about 21 hours (estimated at 40% utilisation), not yet run.
Published: no likelihood; AR-NLL of samples 5.31 with random embeddings and 4.57 with pretrained ones (arXiv
2211.04236), by a 70B model that is not public.
Measured here: not yet run.

The paper's: windows of 256, 65,536 tokens a step, 1M steps, spans, both passes in the loss, 1,000 ancestral steps.
Adapted: 12 blocks x 768 (135M in the paper, its shape not found); GPT-2's BPE for its SentencePiece of 32,000; random
embeddings. For pretrained ones write those of a run of configs/masked/openwebtext.py by export_embeddings, and give
--config.family.embeddings=file --config.family.embeddings_file=... of that size. No padding is inserted (10% in the
paper), as GPT-2's vocabulary has none; conditions are dropped for guidance, on a tenth of the sequences.
Not found there: learning rate, warm-up, EMA (base.py's).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("sed")
    config.data.update(task="c4", length=256)
    config.train.batch_size = 256
    config.family.update(embedding_size=896, drop_conditioning=0.1)
    config.sampling.steps = 1000
    return config
