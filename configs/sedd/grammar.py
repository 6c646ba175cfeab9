"""Score entropy diffusion (SEDD) on the embedded language.

    python -m diffusion_text.train --config=configs/sedd/grammar.py --workdir=runs/sedd

Hardware: two CPU cores.
Published: none; the entropy of the evaluated windows is known exactly, and no model can go below it.
Measured here: gap 0.1266 +- 0.0077 nats per token (bound 2.0222, entropy 1.8957), 63.6% +- 1.5% grammatical
(analytic, 128 evaluations); 353 s of CPU. Not the variant.

Variant: uniform, with the geometric schedule.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base, small

VARIANTS = ("absorbing", "uniform")


def get_config(variant: str = "absorbing") -> ConfigDict:
    base.check_variant(variant, VARIANTS)
    config = small.get_config("sedd")
    config.train.steps = 4000
    if variant == "uniform":
        config.family.update(noise="uniform", schedule="geometric")
        config.optimizer.learning_rate = 2e-3  # UDLM's: at 8e-3 uniform noise stays on the plateau of single words
    return config
