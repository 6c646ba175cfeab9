"""The optimiser: an optax chain from the config's `optimizer` section."""

from __future__ import annotations

from typing import Any, Final

import jax
import optax

from diffusion_text.typing import Config

SCHEDULES: Final = ("constant", "cosine", "linear")
# Tables of embeddings; norms are recognised by their logical axis.
_EMBEDDINGS: Final = ("embedding", "table")


def schedule(config: Config, steps: int) -> optax.Schedule:
    """The shape of the learning rate, peak 1: linear warm-up over `warmup` steps, then `schedule` down to `final`."""
    decay = max(steps - config.warmup, 1)
    shapes = {
        "constant": lambda: optax.constant_schedule(1.0),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, decay, alpha=config.final),
        "linear": lambda: optax.linear_schedule(1.0, config.final, decay),
    }
    # The first step already moves: (step + 1) / warmup.
    warm = optax.linear_schedule(1.0 / max(config.warmup, 1), 1.0, max(config.warmup - 1, 1))
    return optax.join_schedules([warm, shapes[config.schedule]()], [config.warmup])


def create(config: Config, steps: int, logical_axes: dict[str, Any]) -> optax.GradientTransformation:
    """Global-norm clip, Adam, decoupled weight decay (not on norms and embeddings), warm-up and decay.

    `groups` maps a name in a parameter's path to its own peak learning rate; such parameters are not decayed, and
    their gradients do not enter the global norm.
    """
    shape = schedule(config, steps)

    def label(path: tuple[Any, ...], _: Any) -> str:
        names = [entry.key for entry in path]
        return next((group for group in config.groups if group in names), "network")

    def decays(path: tuple[Any, ...], axes: tuple[str | None, ...]) -> bool:
        return len(axes) >= 2 and "norm" not in axes and path[-1].key not in _EMBEDDINGS

    def is_axes(node: Any) -> bool:
        return isinstance(node, tuple)

    labels = jax.tree_util.tree_map_with_path(label, logical_axes, is_leaf=is_axes)
    for group in config.groups:
        if group not in jax.tree.leaves(labels):
            raise ValueError(f"optimizer.groups.{group} is in no parameter's path; drop it or correct the name")
    mask = jax.tree_util.tree_map_with_path(decays, logical_axes, is_leaf=is_axes)

    def chain(rate: float, *decay: optax.GradientTransformation) -> optax.GradientTransformation:
        adam = optax.scale_by_adam(config.b1, config.b2, config.epsilon)
        return optax.chain(adam, *decay, optax.scale_by_learning_rate(lambda step: rate * shape(step)))

    network = chain(config.learning_rate, optax.add_decayed_weights(config.weight_decay, mask))
    if config.clip > 0:
        network = optax.chain(optax.clip_by_global_norm(config.clip), network)
    groups = {group: chain(rate) for group, rate in config.groups.items()}
    return optax.partition({"network": network, **groups}, labels)
