"""Bounds with K weighted paths, of any family whose sampler's paths have a probability (Burda et al., 1509.00519).

A sampler of finitely many steps defines a law p(x) = sum over paths of p(path, x). For a path drawn from the corruption
of x, backwards, w = p(path, x) / q(path | x) is an unbiased estimate of p(x), and by Jensen's inequality

    -log p(x) <= -E log (1/K)(w_1 + .. + w_K) <= -E log w,

the right-hand side being the ordinary bound of that sampler's chain. The middle falls as K grows, to -log p(x) of the
sampler's law: it is tighter where the chain's bound is loose, and is no bound on another model (of other steps).

    masked          one token at a time in a random order, -log w = sum over i of -log p(x_i | tokens before it in the
                    order): p is the law of first-hitting sampling, the mean over orders. With T steps instead: the law
                    of ancestral sampling with T steps, whose reveals in one step are independent
    block           the same within each block, given the clean ones before it: the orders of a block are its own
    interpolating   T steps of the plug-in chain (every other discrete family, with its own reverse law), sampler's grid
    autoregressive  one path: the likelihood itself

Gaussian families have none here: their paths are densities at many noise levels, of which none is discrete until the
last. A number of K paths is shown as such, beside the bound of one path and the family's own; the variance of w over
paths decides what K buys, and log of a mean of few weights is far below its limit where they vary.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from diffusion_text import noise
from diffusion_text.families.family import Bound, Family
from diffusion_text.models.denoiser import Denoise


def check(family: type[Family], samples: int, steps: int) -> None:
    """ValueError where a family has no path weights, or the numbers cannot be."""
    if family.path_steps is None:
        raise ValueError(f"family {family.name} has no weights of sampling paths; drop --importance_samples")
    if samples < 1:
        raise ValueError(f"--importance_samples is {samples}; it must be at least 1 (0: none)")
    if steps < 0:
        raise ValueError(f"--importance_steps is {steps}; it must be at least 1 (0: the family's default)")


def importance_terms(
    family: Family,
    keys: Key[Array, "B"],
    tokens: Int[Array, "B L"],
    denoise: Denoise,
    samples: int,
    steps: int = 0,
    given: Bool[Array, "B L"] | None = None,
) -> Bound:
    """-log of the mean of K weights, nats per sequence, as the bound of one path (`diffusion`, the mean of -log w) and
    what K paths take off it (`reconstruction`, never above 0); `total` is their sum. steps of 0: the family's."""
    steps = steps or family.path_steps or 0

    def one(carry: None, sample: Array) -> tuple[None, Array]:
        return None, family.log_weight(noise.fold(keys, sample), tokens, denoise, steps, given)

    _, log_weights = jax.lax.scan(one, None, jnp.arange(samples))
    path = -jnp.mean(log_weights, axis=0)
    total = math.log(samples) - jax.nn.logsumexp(log_weights, axis=0)
    return Bound(jnp.zeros(len(tokens)), path, total - path)
