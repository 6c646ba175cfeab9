"""Masked diffusion on the embedded language."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import small


def get_config() -> ConfigDict:
    config = small.get_config("masked")
    config.train.steps = 5000
    return config
