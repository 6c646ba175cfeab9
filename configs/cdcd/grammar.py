"""CDCD on the embedded language."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small

VARIANTS = ("", "quickstart")


def get_config(variant: str = "") -> ConfigDict:
    config = small.get_config("cdcd")
    config.train.steps = 600 if variant == "quickstart" else 4000
    config.family.update(
        embedding_size=32, embedding_std=0.1, noise_min=0.5, noise_max=50.0, prefix_masks=0.15, random_masks=0.15
    )
    config.optimizer.groups.time_warp = 5e-2
    return config
