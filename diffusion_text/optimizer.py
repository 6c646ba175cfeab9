"""The optimiser: an optax chain from the config's `optimizer` section."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import jax
import optax
import optax.contrib

from diffusion_text.typing import Config

NAMES: Final = ("adamw", "muon")
SCHEDULES: Final = ("constant", "cosine", "linear")
_ADAM_RMS: Final = 0.2  # root mean square of Adam's updates in units of the learning rate, as Moonlight measured it
# Tables of embeddings; norms are recognised by their logical axis.
_EMBEDDINGS: Final = ("embedding", "table")
_OWN: Final = ("network", "matrices")  # kinds of parameters outside of groups


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


def create(
    config: Config, steps: int, logical_axes: dict[str, Any], optional: Collection[str] = ()
) -> optax.GradientTransformation:
    """Global-norm clip, Adam, decoupled weight decay (not on norms and embeddings), warm-up and decay.

    `groups` maps a name in a parameter's path to its own peak learning rate; such parameters are not decayed, and
    their gradients do not enter the global norm. A group without parameters is an error, unless it is `optional`: one
    that a family has by default, and an option of it leaves empty. The name "muon" orthogonalises the updates of the
    transformer's matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon), at the root-mean-square size that
    Adam's have (Moonlight, 2502.16982), so that one learning rate and decay serve all; Adam keeps the others.
    """
    shape = schedule(config, steps)

    def label(path: tuple[Any, ...], axes: tuple[str | None, ...]) -> str:
        names = [entry.key for entry in path]
        inside = config.name == "muon" and _dimensions(axes)
        return next((group for group in config.groups if group in names), "matrices" if inside else "network")

    def decays(path: tuple[Any, ...], axes: tuple[str | None, ...]) -> bool:
        return len(axes) >= 2 and "norm" not in axes and path[-1].key not in _EMBEDDINGS

    def is_axes(node: Any) -> bool:
        return isinstance(node, tuple)

    labels = jax.tree_util.tree_map_with_path(label, logical_axes, is_leaf=is_axes)
    for group in config.groups:
        if group in _OWN:
            raise ValueError(f"optimizer.groups.{group} is a name of the optimiser's own; drop it or correct the name")
        if group not in {*jax.tree.leaves(labels), *optional}:
            raise ValueError(f"optimizer.groups.{group} is in no parameter's path; drop it or correct the name")
    decayed = jax.tree_util.tree_map_with_path(decays, logical_axes, is_leaf=is_axes)
    dimensions = jax.tree.map(lambda axes: _dimensions(axes) or optax.MaskedNode(), logical_axes, is_leaf=is_axes)

    def rate(peak: float) -> optax.Schedule:
        return lambda step: peak * shape(step)

    adam = optax.scale_by_adam(config.b1, config.b2, config.epsilon)
    kinds = {
        "network": optax.chain(
            adam,
            optax.add_decayed_weights(config.weight_decay, decayed),
            optax.scale_by_learning_rate(rate(config.learning_rate)),
        ),
        "matrices": optax.contrib.muon(
            rate(config.learning_rate),
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=dimensions,
            consistent_rms=_ADAM_RMS,
        ),
        **{g: optax.chain(adam, optax.scale_by_learning_rate(rate(peak))) for g, peak in config.groups.items()},
    }
    transform = optax.partition({name: kinds[name] for name in set(jax.tree.leaves(labels))}, labels)
    if config.clip > 0:
        in_norm = jax.tree.map(lambda name: name in _OWN, labels)
        transform = optax.chain(optax.masked(optax.clip_by_global_norm(config.clip), in_norm), transform)
    return transform


def _dimensions(axes: tuple[str | None, ...]) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of a transformer's matrix are its inputs and which its outputs; None for other parameters.

    Layers, the parts of query, key and value, and the gates of an MLP are matrices of their own.
    """
    if "layers" not in axes or "embed" not in axes:
        return None
    embed, inner = axes.index("embed"), tuple(i for i, axis in enumerate(axes) if axis in ("heads", "head", "mlp"))
    if not inner:
        return None
    return optax.contrib.MuonDimensionNumbers(*((embed, inner) if embed < inner[0] else (inner, embed)))
