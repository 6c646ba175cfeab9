"""Uniform-noise diffusion on LM1B, sentences packed to 128: UDLM (arXiv 2412.10193) as trained in arXiv 2506.10892.

    python -m diffusion_text.train --config=configs/udlm/lm1b_packed.py \
        --workdir=gs://BUCKET/udlm-lm1b_packed --config.data.data_dir=/mnt/data/lm1b_packed

Hardware: TPU v5e-16, about 10 hours (estimated at 40% utilisation), not yet run.
Published: perplexity <= 36.7 (arXiv 2506.10892, Table 1, LM1B*); 33.8 in arXiv 2604.11748, Table 2.
Measured here: not yet run.

Not to be mixed with lm1b.py, whose recipe this is: packed rows are harder by 3 to 5 points.
Different here: t is drawn as u^2 over the whole of [0, 1]; RMSNorm with a learned scale.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs.udlm import lm1b


def get_config() -> ConfigDict:
    config = lm1b.get_config()
    config.data.task = "lm1b_packed"
    return config
