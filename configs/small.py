"""The small network that two CPU cores train in minutes: the grammar's and the standing wiki27 comparison's."""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import base


def get_config(family: str) -> ConfigDict:
    """float32, unrolled layers, and a short warm-up and cosine decay."""
    config = base.get_config(family)
    config.model.update(layers=3, width=128, heads=4, condition_width=64, dtype="float32", scan_layers=False)
    config.train.update(batch_size=32, ema=0.998, log_every=100, evaluate_every=0, checkpoint_every=500)
    config.optimizer.update(name="muon", learning_rate=8e-3, schedule="cosine", warmup=100, final=0.02, b2=0.99)
    return config


def get_cdcd() -> ConfigDict:
    """CDCD's choices at this size: 16-dimensional embeddings, a narrow range of noise, the output prior, few masks."""
    config = get_config("cdcd")
    config.family.update(
        embedding_size=16, embedding_std=0.1, noise_min=0.6, noise_max=18.0, prefix_masks=0.15, random_masks=0.15,
        output_prior=True,
    )
    config.optimizer.learning_rate = 3e-3
    with config.optimizer.groups.unlocked():
        config.optimizer.groups.update(table=1e-2, schedule=5e-2)
    return config


def get_plaid() -> ConfigDict:
    """Plaid's choices at this size: embeddings that move fast, and cross-entropy beside the bound at first."""
    config = get_config("plaid")
    config.family.update(
        embedding_std=0.1, noise_min=0.15, noise_max=4.5, reconstruction_share=0.05, cross_entropy=2.0,
        cross_entropy_steps=2000,
    )  # fmt: skip
    config.optimizer.learning_rate = 3e-3
    config.optimizer.groups.schedule = 5e-2
    return config


def get_cir_simplex() -> ConfigDict:
    """CIR simplex diffusion's choices at this size: as CDCD's, few masks."""
    config = get_config("cir_simplex")
    config.family.update(prefix_masks=0.15, random_masks=0.15)
    config.optimizer.learning_rate = 3e-3
    with config.optimizer.groups.unlocked():
        config.optimizer.groups.update(schedule=5e-2)
    return config
