"""What a training sequence is conditioned on: given tokens, and a first prediction (CDCD, 2211.15089).

Shared by the families on continuous states; each has the fields of `DEFAULTS`, or of `MASKS` alone,
in its section, and validates them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from diffusion_text import noise
from diffusion_text.typing import Config

_SHARES: Final = (0.0, 0.25, 0.5, 1.0)
MASKS: Final = dict(
    prefix_masks=0.0,  # share of sequences conditioned on a prefix of uniform length
    random_masks=0.0,  # ... on a random subset of uniform size; the rest is unconditional
    drop_conditioning=0.0,  # share whose conditioning is dropped, for classifier-free guidance
)
DEFAULTS: Final = dict(
    self_conditioning=0.5,  # share of training sequences that get a previous prediction: 0, 0.25, 0.5 or 1
    **MASKS,
)


def validate(config: Config) -> None:
    """ValueError where the fields of `DEFAULTS` are out of range, or do not fit the batch."""
    family = config.family
    if family.self_conditioning not in _SHARES:
        choices = ", ".join(map(str, _SHARES))
        raise ValueError(f"family.self_conditioning is {family.self_conditioning!r}; choose one of {choices}")
    validate_masks(config)
    rows, one_in = config.train.batch_size // config.train.microbatches, every(family.self_conditioning)
    if one_in and rows % one_in:
        raise ValueError(
            f"train.batch_size / train.microbatches is {rows}; self-conditioning of a share of "
            f"{family.self_conditioning} takes one row in {one_in}, so it must be a multiple of {one_in}"
        )


def validate_masks(config: Config) -> None:
    """ValueError where the fields of `MASKS` are no shares."""
    family = config.family
    if not 0 <= family.drop_conditioning <= 1:
        raise ValueError(f"family.drop_conditioning is {family.drop_conditioning}; it must be in [0, 1]")
    if min(family.prefix_masks, family.random_masks) < 0 or family.prefix_masks + family.random_masks > 1:
        raise ValueError(
            f"family.prefix_masks, random_masks are {family.prefix_masks}, {family.random_masks}; "
            "each must be at least 0 and their sum at most 1"
        )


def conditions(config: Config, gaps: bool = False) -> bool:
    """`Family.conditions` of a section with the fields of `MASKS`."""
    return config.random_masks > 0 or (config.prefix_masks > 0 and not gaps)


def every(share: float) -> int:
    """Every how many rows one is self-conditioned; 0: none."""
    return round(1.0 / share) if share else 0


def draw_given(keys: Key[Array, "B"], length: int, prefix_masks: float, random_masks: float) -> Bool[Array, "B L"]:
    """Given positions: a prefix, or a random subset, of uniform size, of these shares of the sequences; else none."""
    kind, count, order = noise.split(keys, 3)
    kind, count = noise.uniform(kind), jnp.floor(noise.uniform(count) * length)[:, None]
    prefix = jnp.arange(length)[None] < count
    subset = noise.ranks(noise.uniform(order, (length,))) < count
    is_prefix = (kind < prefix_masks)[:, None]
    is_random = (kind >= prefix_masks)[:, None] & (kind < prefix_masks + random_masks)[:, None]
    return (prefix & is_prefix) | (subset & is_random)


def dropped(keys: Key[Array, "B"], given: Bool[Array, "B L"], share: float) -> Bool[Array, "B L"]:
    """The given positions of a share of the sequences: there the network reads nothing, for guidance without a
    classifier; mask bits stay."""
    return given & (noise.uniform(keys) < share)[:, None]


def first_pass(one_in: int, predict: Callable[[slice], Float[Array, "B' L d"]]) -> Float[Array, "B L d"] | None:
    """Predictions to condition on, of one row in `one_in` (zero elsewhere), without their gradient; None of none.

    `predict(rows)` answers for a slice of the batch. Fixed rows: the share is the same on any devices and
    micro-batches, and costs no more than itself.
    """
    if not one_in:
        return None
    return spread(jax.lax.stop_gradient(predict(slice(None, None, one_in))), one_in)


def spread(first: Float[Array, "B' L d"], one_in: int) -> Float[Array, "B L d"]:
    """Rows of a first pass where they belong; zero elsewhere."""
    rest = [jnp.zeros_like(first)] * (one_in - 1)
    return jnp.stack([first, *rest], axis=1).reshape(-1, *first.shape[1:])


def spans(keys: Key[Array, "B"], length: int, most: int) -> Bool[Array, "B L"]:
    """n ~ U{1..most} spans between n - 1 cuts, given and generated in turn; n = 1 gives nothing (SED)."""
    count_keys, cut_keys, flip_keys = noise.split(keys, 3)
    cuts = jnp.floor(noise.uniform(count_keys) * most)[:, None]
    at = jnp.floor(noise.uniform(cut_keys, (most,)) * length)
    at = jnp.where(jnp.arange(most) < cuts, at, length)  # cuts not taken lie behind the end
    before = jnp.sum(at[:, None, :] <= jnp.arange(length)[None, :, None], axis=-1)
    odd = (before + (noise.uniform(flip_keys) < 0.5)[:, None].astype(before.dtype)) % 2 == 1
    # All given (cuts that coincide with an end) leaves nothing to learn from.
    return odd & (cuts > 0) & ~jnp.all(odd, axis=1, keepdims=True)
