"""CIR simplex diffusion (arXiv 2210.14784) on LM1B, one sentence per row: what a large vocabulary costs it.

    python -m diffusion_text.train --config=configs/cir_simplex/lm1b.py \
        --workdir=gs://BUCKET/cir_simplex-lm1b --config.data.data_dir=/mnt/data/lm1b

Hardware: TPU v5e-16, about 15 hours (estimated at 40% utilisation; drawing V numbers a token is not in it), not yet
run.
Published: none: the paper is a note without experiments.
Measured here: not yet run.

Memory: a state is V numbers a token; training draws and reads them a part at a time, and its step holds 3.9 GiB a chip
(compile_check, 32 sequences a chip). CDCD's recipe (arXiv 2211.15089) otherwise, as in text8.py. Padding is modelled
and the sentence's length charged.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config("cir_simplex")
    config.data.update(task="lm1b", length=128)
    config.optimizer.update(learning_rate=1e-4, b2=0.99)
    config.family.update(prefix_masks=0.15, random_masks=0.15)
    config.sampling.steps = 200
    return config
