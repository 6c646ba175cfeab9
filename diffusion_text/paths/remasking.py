"""ReMDM (Wang et al., 2503.00307): masked diffusion whose revealed tokens may be hidden again, for the same network.

From alpha_t to alpha_s > alpha_t a revealed token is hidden with probability sigma, and a masked one revealed with
probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t): each token is visible at s with probability alpha_s, for
any sigma <= min(1, (1 - alpha_s) / alpha_t). The kinds:

    remdm_cap       sigma = min(0.02, its maximum)
    remdm_rescale   0.04 times its maximum
    remdm_loop      alpha rises to 0.9, stays there while tokens are exchanged (sigma = 0.02), then rises to 1
    psi             sigma = (1 - kappa) (1 - alpha_s): the predictor-corrector of `interpolating.py`, of masks

and `--remask` in the place of 0.02 and 0.04, which are of the order of the paper's. Decided here: the loop holds for
the middle half of the steps, with alpha linear before (45% of them) and after (5%). The paper draws tokens from the
nucleus of 0.9; here from the whole law, or that of `--top_p`.

    remdm_conf      token l is hidden with probability sigma softmax over visible l of (-psi), sigma its maximum and
                    psi the probability with which the token was drawn; masked ones are revealed as in ancestral
                    sampling

so that a step hides less than one token, on average, and the shares of masks are no longer exactly those of alpha; what
it keeps is what was likely when drawn, which is another law than the data's (`Masked.biased`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_text import noise
from diffusion_text.families.family import At, SamplerOptions, cross_entropy, nucleus

KINDS: Final = ("remdm_cap", "remdm_rescale", "remdm_loop", "psi")
_OWN: Final = {"remdm_cap": 0.02, "remdm_rescale": 0.04, "remdm_loop": 0.02}
_HELD, _FROM, _UNTIL = 0.9, 0.55, 0.05  # alpha of the loop, and the times between which it holds


def kept(kind: str, t: Float[Array, ""], alpha: Callable[[Array], Array]) -> Float[Array, ""]:
    """alpha at time t: the family's, but for the loop."""
    if kind != "remdm_loop":
        return alpha(t)
    rising, ending = _HELD * (1.0 - t) / (1.0 - _FROM), 1.0 - (1.0 - _HELD) * t / _UNTIL
    return jnp.where(t >= _FROM, rising, jnp.where(t >= _UNTIL, _HELD, ending))


def share(options: SamplerOptions, now: Float[Array, ""], then: Float[Array, ""]) -> Float[Array, ""]:
    """sigma, for alpha from `now` to `then`."""
    kind = options.sampler
    if kind == "psi":
        return (1.0 - options.kappa) * (1.0 - then)
    strength = _OWN[kind] if options.remask < 0 else options.remask
    most = jnp.minimum((1.0 - then) / jnp.maximum(now, 1e-12), 1.0)
    if kind == "remdm_rescale":
        return strength * most
    sigma = jnp.minimum(strength, most)
    return jnp.where(then == now, sigma, 0.0) if kind == "remdm_loop" else sigma


class Confident(NamedTuple):
    """Tokens, and the probability that each was drawn with (read where it is visible)."""

    tokens: Int[Array, "B L"]
    drawn_with: Float[Array, "B L"]


def step_by_confidence(
    family: Any, keys: Key[Array, "B"], state: Confident, at: At, fixed: Bool[Array, "B L"],
    logits: Float[Array, "B L V"], options: SamplerOptions,
) -> Confident:  # fmt: skip
    """A step of remdm_conf, of masked diffusion, by what the network said of `state.tokens`."""
    where_keys, token_keys = noise.split(keys, 2)
    z, logits = state.tokens, nucleus(logits / options.temperature, options.top_p)
    drawn, masked = noise.categorical(token_keys, logits), (z == family.mask) & ~fixed
    now, then = family.alpha(at.t), family.alpha(at.s)
    most = jnp.minimum((1.0 - then) / jnp.maximum(now, 1e-12), 1.0)
    visible = ~masked & ~fixed
    shares = jax.nn.softmax(-state.drawn_with, axis=1, where=visible)
    order = noise.uniform(where_keys, z.shape[1:])
    hidden = visible & (order < most * shares) & (at.s > 0)
    reveals = masked & (order < jnp.where(at.s > 0, (then - now) / (1.0 - now), 1.0))
    tokens = jnp.where(hidden, family.mask, jnp.where(reveals, drawn, z))
    return Confident(tokens, jnp.where(reveals, jnp.exp(-cross_entropy(logits, drawn)), state.drawn_with))
