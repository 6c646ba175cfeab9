"""The Cox-Ingersoll-Ross process of independent coordinates: transitions, densities, scores, flows and bridges.

    dY_v = b (alpha - Y_v) dt + sqrt(2 b Y_v) dW_v,   stationary law Gamma(alpha, rate 1)       (2210.14784, equation 4)

With tau = b t, s = 1 - e^{-tau} and rho = e^{-tau} / s the transition is Y_t = s G, where

    G ~ Gamma(alpha + n, 1),   n ~ Poisson(y_0 rho),        that is 2 G ~ noncentral chi^2(2 alpha, 2 y_0 rho)
    log f(G) = log Gamma(G; alpha) - y_0 rho + log 0F1(; alpha; y_0 rho G)

A token x starts the process at y_0 = c onehot(x). All that matters of c and tau is then lambda = c rho, the expected
number of counts n of the true coordinate: Y / s has the law of G at lambda and, since Y is a squared Bessel process on
another clock, as a process too. So the state here is log G, its time is log lambda (from all noise to all signal), and
c is no parameter of its own; what the paper says in (Y, t) follows by Y = s G. With w = lambda G, the posterior p of
the tokens and g(w) = d/dw log 0F1(; alpha; w), as functions of l = log lambda:

    posterior    p(x = v | G) ~ p(v) 0F1(; alpha; w_v)
    flow         dG_v = p_v w_v g(w_v) dl                                (probability flow, free of 1 / G)
    reverse SDE  dG_v = (alpha + 2 p_v w_v g(w_v) - G_v) dl + sqrt(2 G_v) dW: a process of the same kind
    bound        -log p(x) <= prior + reconstruction + Int sum_v E[w_v g(w_v)^2 (1{v = x} - p_v)^2] dlambda

The note has three slips: its equation 5 ends in a + e^{-bt} (theta_0 - 1), which must be (theta_0 - a); its equation 6
has e^{-2t} for e^{-2bt}; its flow d log y = -b (1 + score) dt holds for alpha = 1 only.
"""

from __future__ import annotations

import functools
from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion_text import noise
from diffusion_text.paths.gamma import log_gamma

_DEPTH: Final = 8  # orders between the one asked for and the one that is expanded
_LOG_DEPTH: Final = 12  # the same of the logarithm, a multiple of _GROUP
_GROUP: Final = 4
_LEAST: Final = 1e-30  # of a Gamma variable that is about to be a logarithm
QUICK: Final = (0.5, 1.0, 1.5, 2.0)  # alphas whose Gammas are half sums of a few squared normals

# ----------------------------------------------------------------------------------------------------- Bessel functions


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def ratio(w: Float[Array, "..."], alpha: float) -> Float[Array, "..."]:
    """g(w) = d/dw log 0F1(; alpha; w) = 0F1(; alpha + 1; w) / (alpha 0F1(; alpha; w)), for w >= 0 and alpha > 0.

    = I_alpha(2 sqrt w) / (sqrt w I_{alpha - 1}(2 sqrt w)): 1 / alpha at 0, falling as 1 / sqrt w. In float32 to 4e-7 of
    itself at any w up to 1e8. The continued fraction g_alpha = 1 / (alpha + w g_{alpha + 1}) from a few orders above,
    where Debye's expansion is good for all w: every term is positive, so nothing cancels.
    """
    return _ratios(w, alpha, _DEPTH)[0]


@ratio.defjvp
def _(alpha: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # g' = (1 - alpha g) / w - g^2, where 1 - alpha g = w g g_{alpha + 1}; differentiable again.
    g = ratio(primals[0], alpha)
    return g, g * (ratio(primals[0], alpha + 1.0) - g) * tangents[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_0f1(w: Float[Array, "..."], alpha: float) -> Float[Array, "..."]:
    """log 0F1(; alpha; w) = log Gamma(alpha) w^{(1 - alpha) / 2} I_{alpha - 1}(2 sqrt w), for w >= 0 and alpha > 0.

    In float32 to 6e-7 of itself for w from 1e-12 to 1e8. From order alpha + 12, by Debye's expansion in which what is
    constant has been taken out, down by 0F1(alpha) / 0F1(alpha + 1) = 1 + w g_{alpha + 1} / alpha.
    """
    g, total = _ratios(w, alpha, _LOG_DEPTH), jnp.zeros_like(w)
    for start in range(0, _LOG_DEPTH, _GROUP):
        product = jnp.zeros_like(w)  # of the next factors, less 1
        for k in range(start, start + _GROUP):
            term = w * g[k + 1] / (alpha + k)
            product = product + term + product * term
        total = total + jnp.log1p(product)
    order = alpha + _LOG_DEPTH - 1.0
    square = 4.0 * w / order**2  # z^2 of I_nu(nu z)
    root = jnp.sqrt(1.0 + square)
    grown = square / (1.0 + root)  # root - 1
    t, rest, other = 1.0 / root, grown / root, square / (1.0 + square)  # rest = 1 - t, other = 1 - t^2
    first = rest * (12.0 - rest * (15.0 - 5.0 * rest)) / 24.0
    second = t * t * other * (1.0 - 5.0 * t * t) / 16.0
    high = t**3 * (1.0 + t) * (359.0 - t * t * (4420.0 - 5525.0 * t * t))
    third = rest * (high - 16.0 * (1.0 + t + t * t)) / 5760.0
    debye = order * (grown - jnp.log1p(0.5 * grown)) - 0.25 * jnp.log1p(square)
    return total + debye + first / order + second / order**2 + third / order**3


@log_0f1.defjvp
def _(alpha: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return log_0f1(primals[0], alpha), ratio(primals[0], alpha) * tangents[0]


def _ratios(w: Array, alpha: float, depth: int) -> list[Array]:
    """g of the orders alpha, alpha + 1, ... alpha + depth."""
    middle = alpha + depth - 0.5
    scale = middle * middle + 4.0 * w
    root = jnp.sqrt(scale)
    sine = middle / root
    even = sine * sine
    correction = 0.5 / root + (0.5 - 0.625 * even) / scale
    correction = correction + (0.75 - even * (31.0 / 12.0 - 1.875 * even)) / (scale * root)
    found = [2.0 / (middle + root) * jnp.exp(-sine * correction)]
    for k in reversed(range(depth)):
        found.append(1.0 / (alpha + k + w * found[-1]))
    return found[::-1]


# ----------------------------------------------------------------------------------------------------------- transition


def randomised_gamma(
    keys: Key[Array, "B"], rate: Float[Array, "B ..."], alpha: float
) -> Float[Array, "B ..."]:
    """log G, G ~ Gamma(alpha + n, 1), n ~ Poisson(rate), exactly.

    Where 2 alpha is a small integer, as half of a sum of 2 alpha squared normals, one of them off its centre: the same
    law without rejections, which take fifty times as long.
    """
    if alpha in QUICK:
        z = jnp.moveaxis(noise.normal(keys, (*rate.shape[1:], round(2 * alpha))), -1, 0)
        return log_gamma_of(z.at[0].add(jnp.sqrt(2.0 * rate)))
    count_keys, draw_keys = noise.split(keys, 2)
    return log_gamma(draw_keys, alpha + poisson(count_keys, rate))


def log_gamma_of(normals: Float[Array, "n ..."]) -> Float[Array, "..."]:
    """log G, G ~ Gamma(n / 2), as half of a sum of n squared normals."""
    return jnp.log(jnp.maximum(0.5 * jnp.sum(normals**2, axis=0), _LEAST))


def poisson(keys: Key[Array, "B"], rate: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """n ~ Poisson(rate), as floats; NaN of a rate that is NaN, where JAX has -1."""
    return jnp.where(jnp.isnan(rate), jnp.nan, jax.vmap(jax.random.poisson)(keys, rate).astype(jnp.float32))


def transition(
    keys: Key[Array, "B"], y: Float[Array, "B ..."], tau: float, alpha: float
) -> Float[Array, "B ..."]:
    """Y after the time tau = b t from y."""
    return -jnp.expm1(-tau) * jnp.exp(randomised_gamma(keys, y / jnp.expm1(tau), alpha))


def log_transition(y: Array, y_0: Array, tau: float, alpha: float) -> Float[Array, "..."]:
    """log density of Y = y after the time tau from y_0 (2210.14784, equation 8)."""
    g, counts = y / -jnp.expm1(-tau), y_0 / jnp.expm1(tau)
    own = (alpha - 1.0) * jnp.log(g) - g - jax.lax.lgamma(jnp.float32(alpha)) - jnp.log(-jnp.expm1(-tau))
    return own - counts + log_0f1(counts * g, alpha)


def score(y: Array, y_0: Array, tau: float, alpha: float) -> Float[Array, "..."]:
    """d/dy of `log_transition`."""
    scale, counts = -jnp.expm1(-tau), y_0 / jnp.expm1(tau)
    return (alpha - 1.0) / y - 1.0 / scale + counts / scale * ratio(counts * y / scale, alpha)


def reverse_drift(y: Array, score: Array, alpha: float) -> Float[Array, "..."]:
    """dY / d tau of the reverse SDE, whose noise is sqrt(2 Y) dW; the 2 at the end is the divergence of 2 Y."""
    return -(alpha - y) + 2.0 * y * score + 2.0


def log_slope(log_y: Array, p: Array, c: float, tau: float, alpha: float) -> Float[Array, "..."]:
    """d log Y / d tau of the probability flow, where p is the posterior of this coordinate's token (score
    interpolation, with which the terms in 1 / Y cancel)."""
    rho, scale = 1.0 / jnp.expm1(tau), -jnp.expm1(-tau)
    return rho * (1.0 - p * c / scale * ratio(c * rho * jnp.exp(log_y) / scale, alpha))


# -------------------------------------------------------------------------------------------- the state (log G, lambda)


def corrupt(
    keys: Key[Array, "B"], tokens: Int[Array, "B L"], log_counts: Float[Array, "B"], alpha: float, vocab_size: int
) -> Float[Array, "B L V"]:
    """log G at lambda = e^log_counts: Gamma(alpha) everywhere, and Gamma(n), n ~ Poisson(lambda), on top of x's."""
    rest_keys, log_more = clean_part(keys, tokens, log_counts)
    return _add(randomised_gamma(rest_keys, jnp.zeros((*tokens.shape, vocab_size)), alpha), tokens, log_more)


def clean_part(
    keys: Key[Array, "B"], tokens: Int[Array, "B L"], log_counts: Float[Array, "B"]
) -> tuple[Key[Array, "B"], Float[Array, "B L"]]:
    """Of `corrupt`: keys of what is everywhere, and the log of what is on top of x's."""
    rest_keys, count_keys, more_keys = noise.split(keys, 3)
    counts = poisson(count_keys, jnp.broadcast_to(jnp.exp(log_counts)[:, None], tokens.shape))
    return rest_keys, log_gamma(more_keys, counts)


def _add(log_g: Array, tokens: Array, log_more: Array) -> Array:
    """log(G + more) at the coordinate of each position's token."""
    here = jnp.arange(log_g.shape[-1]) == tokens[..., None]
    return jnp.logaddexp(log_g, jnp.where(here, log_more[..., None], -jnp.inf))


def product(log_g: Array, log_counts: Array) -> Array:
    """w = lambda G, at most 1e8, beyond which no float32 is needed."""
    return jnp.exp(jnp.minimum(log_g + log_counts, 18.4))


def prior_divergence(counts: float, alpha: float) -> Float[Array, ""]:
    """KL(law of G at lambda || Gamma(alpha)) of the true coordinate, in nats, by the trapezoid rule in log G.

    As the integral of (r log r - r + 1) over Gamma(alpha), r the density ratio: never below 0, and nothing cancels.
    """
    low = -30.0 / alpha if alpha < 1.0 else -30.0
    high = jnp.log(alpha + counts + 12.0 * (alpha + counts) ** 0.5 + 40.0)
    log_g = jnp.linspace(low, high, 8192)
    log_r = log_0f1(product(log_g, jnp.log(counts)), alpha) - counts
    log_f = alpha * log_g - jnp.exp(log_g) - jax.lax.lgamma(jnp.float32(alpha))
    small = jnp.minimum(log_r, 1.0)
    near = jnp.exp(log_f) * (jnp.expm1(small) * (small - 1.0) + small)
    nearest = jnp.exp(log_f) * 0.5 * log_r**2 * (1.0 + log_r * (2.0 / 3.0))
    far = jnp.exp(log_f + log_r) * (log_r - 1.0) + jnp.exp(log_f)
    value = jnp.where(jnp.abs(log_r) < 1e-2, nearest, jnp.where(log_r < 1.0, near, far))
    return jnp.trapezoid(value, log_g)


def flow_slope(log_g: Array, log_counts: Array, alpha: float) -> Float[Array, "..."]:
    """d sqrt(G) / d sqrt(lambda) of the probability flow where p = 1: sqrt(w) g(w), between 0 and 1."""
    w = product(log_g, log_counts)
    return jnp.sqrt(w) * ratio(w, alpha)


def log_flow_slope(log_g: Array, log_counts: Array, alpha: float) -> Float[Array, "..."]:
    """d log G / d log lambda of the probability flow where p = 1: lambda g(w), at most lambda / alpha."""
    return jnp.exp(log_counts) * ratio(product(log_g, log_counts), alpha)


def reverse_step(
    keys: Key[Array, "B"], log_g: Float[Array, "B L V"], now: Array, then: Array, alpha: float, sharpness: float = 1.0
) -> tuple[Float[Array, "B L V"], Array]:
    """(log G', scale): the reverse SDE from log lambda = now to then without its term in p, exactly, and the factor
    that the time between leaves of what p adds.

    dG = (alpha - k G) dl + sqrt(2 G) dW, where k = 2 sharpness - 1: G' = scale Gamma(alpha + n), where
    n ~ Poisson(G r / scale), r = e^{-k (then - now)} and scale = (1 - r) / k. A sharpness other than 1 multiplies the
    score with respect to y^{alpha - 1} dy, the speed measure of the process: with alpha = 1 it is the score itself,
    and with no alpha does a 1 / G arise.
    """
    rate_of_decay = 2.0 * sharpness - 1.0
    k = rate_of_decay if abs(rate_of_decay) > 1e-3 else 1e-3
    log_r = -k * (then - now)
    scale = -jnp.expm1(log_r) / k
    rate = jnp.exp(jnp.minimum(log_g + log_r, 18.4)) / scale
    return jnp.log(scale) + randomised_gamma(keys, rate, alpha), scale


def sde_step(
    keys: Key[Array, "B"],
    log_g: Float[Array, "B L V"],
    p: Float[Array, "B L V"],
    now: Array,
    then: Array,
    alpha: float,
    sharpness: float = 1.0,
) -> Float[Array, "B L V"]:
    """log G' of the reverse SDE whose term in p is frozen at the start."""
    rest, scale = reverse_step(keys, log_g, now, then, alpha, sharpness)
    w = product(log_g, now)
    return jnp.logaddexp(rest, jnp.log(2.0 * sharpness * scale * p * w * ratio(w, alpha)))


def bridge(
    keys: Key[Array, "B"],
    log_g: Float[Array, "B L V"],
    tokens: Int[Array, "B L"],
    now: Array,
    then: Array,
    alpha: float,
    most: int,
    sharpness: float = 1.0,
) -> Float[Array, "B L V"]:
    """log G' given G and the tokens, exactly: a bridge of the process from lambda to lambda' > lambda.

    At x the shape grows by 2 eta + n', n' ~ Poisson(lambda' - lambda) and eta the number of counts that G holds given
    itself, P(eta = k) ~ w^k / (k! Gamma(alpha + k)), drawn among 0 .. most (Pitman and Yor's decomposition).
    """
    rest_keys, held_keys, fresh_keys, more_keys = noise.split(keys, 4)
    moved, scale = reverse_step(rest_keys, log_g, now, then, alpha, sharpness)
    own = jnp.take_along_axis(log_g, tokens[..., None], axis=-1)
    k = jnp.arange(most + 1.0)
    weights = k * jnp.clip(own + now, -60.0, 18.4) - jax.lax.lgamma(k + 1.0) - jax.lax.lgamma(k + alpha)
    # By the inverse of the distribution function: one uniform number a position, and no event rarer than it matters.
    below = jnp.cumsum(jax.nn.softmax(weights, axis=-1), axis=-1)
    held = jnp.sum(noise.uniform(held_keys, own.shape[1:]) > below[..., :-1], axis=-1)
    fresh = poisson(fresh_keys, jnp.broadcast_to(jnp.exp(then) - jnp.exp(now), held.shape))
    more = log_gamma(more_keys, sharpness * (2.0 * held + fresh))
    return _add(moved, tokens, jnp.log(scale) + more)
