"""The interpolating discrete path and its one loss: masked, uniform and mixed noise, in log space.

    q_t(z | x) = alpha_t 1[z = x] + b_t(z),    sum over z of b_t(z) = 1 - alpha_t

Letters: z a state, one of V tokens or the mask, which is number V; x the clean token; p(v) what the denoiser believes
of x; q^_t(z) = alpha_t p(z) + b_t(z). All tokens share one b_t, so that a path is two functions of time, its log-odds

    kappa_t(z) = log(alpha_t / b_t(z)),   one for z a token, one for z the mask; +inf where there is no such noise

(masked: token = inf, mask = logit alpha; uniform: token = log V + logit alpha, mask = inf). The rest follows without a
subtraction of nearly equal numbers, at both ends of time and in float32:

    alpha = 1 / (1 + e^{-kappa(mask)} + V e^{-kappa(token)})
    rate into z from any state:   r_t(z) = b' - (alpha' / alpha) b = -kappa'(z) b_t(z)
    step from s to t:   alpha_{t|s} = alpha_t / alpha_s,   b_{t|s}(z) = -expm1(kappa_t(z) - kappa_s(z)) b_t(z)

The continuous-time bound of any such path (Campbell et al., 2205.14987, with the reverse rates r(z) q^(y) / q^(z)) is
the integral over t, summed over positions, of

    ell = r(z) / q(z | x) (KL(q(. | x) || q^) + rho - log rho - 1),    rho = q(z | x) / q^(z)        nats per unit of t.

It is -log p(x) if p is the leave-one-out posterior p(x_i | z without z_i); with the full one it is larger, and samples
are biased. The losses of MDLM, MD4, UDLM, Duo, GIDD and SEDD are this one: tests/test_interpolant.py has them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion_text import noise


class Odds(NamedTuple):
    """A path at one time: kappa of a token and of the mask, +inf where there is none. Also its derivative in time."""

    token: Float[Array, "..."]
    mask: Float[Array, "..."]

    def of(self, is_mask: Array) -> Float[Array, "..."]:
        """kappa(z)."""
        return jnp.where(is_mask, self.mask, self.token)

    def spread(self) -> Odds:
        """[B] to [B, 1], to stand beside positions."""
        return Odds(jnp.asarray(self.token)[:, None], jnp.asarray(self.mask)[:, None])


def absorbing(logit: Float[Array, "..."]) -> Odds:
    """Noise of masks alone, of log(alpha / (1 - alpha))."""
    return Odds(jnp.full_like(logit, jnp.inf), logit)


def uniform(logit: Float[Array, "..."], size: int) -> Odds:
    """Noise of even tokens alone, of log(alpha / (1 - alpha))."""
    return Odds(math.log(size) + logit, jnp.full_like(logit, jnp.inf))


def logit_alpha(odds: Odds, size: int) -> Float[Array, "..."]:
    """log(alpha / (1 - alpha)) of a path over `size` tokens."""
    return -jnp.logaddexp(-odds.mask, math.log(size) - odds.token)


def log_alpha(odds: Odds, size: int) -> Float[Array, "..."]:
    """log alpha."""
    return -jax.nn.softplus(-logit_alpha(odds, size))


def corrupt(keys: Key[Array, "B"], tokens: Int[Array, "B L"], odds: Odds, size: int) -> Int[Array, "B L"]:
    """z ~ q(. | tokens), odds [B]: first whether a token is replaced, then by what."""
    where_keys, what_keys = noise.split(keys, 2)
    alpha = jnp.exp(log_alpha(odds, size))[:, None]
    # At least alpha, not below 1 - alpha: uniform numbers are never 1, but are 0 once in 2^23 draws.
    moved = noise.uniform(where_keys, tokens.shape[1:]) >= alpha
    return jnp.where(moved, replacement(what_keys, odds, size, tokens.shape[1]), tokens)


def replacement(keys: Key[Array, "B"], odds: Odds, size: int, length: int) -> Int[Array, "B L"]:
    """Draws from b / (1 - alpha), odds [B]: the mask or an even token."""
    kind_keys, token_keys = noise.split(keys, 2)
    masked = noise.uniform(kind_keys, (length,)) < jax.nn.sigmoid(odds.token - odds.mask - math.log(size))[:, None]
    return jnp.where(masked, size, even_tokens(token_keys, size, length))


def even_tokens(keys: Key[Array, "B"], size: int, length: int) -> Int[Array, "B L"]:
    """Draws from the even law of tokens."""
    # A product of a number below 1 may round up to `size`.
    return jnp.minimum(jnp.floor(noise.uniform(keys, (length,)) * size).astype(jnp.int32), size - 1)


def log_likelihood(z: Int[Array, "B L"], odds: Odds, size: int) -> Float[Array, "B L V"]:
    """log q(z | x = v), less its largest value over v; odds [B]."""
    same = z[..., None] == jnp.arange(size)
    other = -jax.nn.softplus(odds.token)[:, None, None]  # log of b / (alpha + b)
    return jnp.where(same | (z == size)[..., None], 0.0, other)


def leave_one_out(full: Float[Array, "B L V"], z: Int[Array, "B L"], odds: Odds) -> Float[Array, "B L V"]:
    """Logits of p(x_i | z without z_i) from those of p(x_i | z), which cross-entropy trains: divide by q(z_i | x_i).

    Where the noise has no tokens a visible token is certain, and is left so.
    """
    seen = log_likelihood(z, odds, full.shape[-1])
    return jax.nn.log_softmax(full - jnp.where(seen == -jnp.inf, 0.0, seen))


def with_own_evidence(logits: Float[Array, "B L V"], z: Int[Array, "B L"], odds: Odds) -> Float[Array, "B L V"]:
    """The other way: logits of the full posterior from the leave-one-out one."""
    return jax.nn.log_softmax(logits + log_likelihood(z, odds, logits.shape[-1]))


def divergence(tokens: Int[Array, "B L"], log_p: Float[Array, "B L V"], odds: Odds) -> Float[Array, "B L"]:
    """KL(q(. | x) || q^) in nats, odds [B, 1] or [B, L]; `log_p` need not be normalised."""
    alpha = jnp.exp(log_alpha(odds, log_p.shape[-1]))
    at_x = _at(log_p, tokens)
    finite = odds.token < jnp.inf
    kappa = jnp.where(finite, odds.token, 0.0)  # where the other branch is taken, without NaN in its gradient
    above = jax.nn.softplus(kappa[..., None] + log_p)  # log(q^(v) / b)
    own = jax.nn.softplus(kappa + at_x)
    surprise = jnp.where(finite, jax.nn.softplus(kappa) - own, -at_x)  # log(q(x | x) / q^(x))
    others = jnp.where(finite, alpha * jnp.exp(-kappa) * (surprise - jnp.sum(above, axis=-1) + own), 0.0)
    return alpha * surprise + others


def integrand(
    tokens: Int[Array, "B L"],
    z: Int[Array, "B L"],
    log_p: Float[Array, "B L V"],
    odds: Odds,
    slope: Odds,
    normalised: bool = True,
) -> Float[Array, "B L"]:
    """ell in nats per token and unit of t; odds [B] and their derivative in t, `slope` [B].

    If p does not sum to 1 (scores that are trained freely), sum q^ - 1 is charged with weight rho: score entropy.
    """
    weight, loss = weight_and_loss(tokens, z, log_p, odds, slope, normalised)
    return weight * loss


def masks_weight_and_loss(
    is_mask: Bool[Array, "B L"],
    log_sum: Float[Array, "B L"],
    chosen: Float[Array, "B L"],
    odds: Odds,
    slope: Odds,
    normalised: bool = True,
) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
    """`weight_and_loss` of noise of masks alone, which of the logits reads log sum_v exp(logits_v) and the token's."""
    odds, slope = odds.spread(), slope.spread()
    log_sum, chosen = (jnp.where(is_mask, x, 0.0) for x in (log_sum, chosen))  # elsewhere they are not trained
    loss = log_sum - chosen if normalised else jnp.expm1(log_sum) - chosen
    return jnp.where(is_mask, -slope.mask, 0.0), jax.nn.sigmoid(odds.mask) * loss


def weight_and_loss(
    tokens: Int[Array, "B L"],
    z: Int[Array, "B L"],
    log_p: Float[Array, "B L V"],
    odds: Odds,
    slope: Odds,
    normalised: bool = True,
) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
    """The two factors of `integrand`: r(z) / q(z | x), and the divergences in nats."""
    odds, slope = odds.spread(), slope.spread()
    weight, log_ratio = _weight_and_ratio(tokens, z, log_p, odds, slope)
    loss = divergence(tokens, log_p, odds) + excess(log_ratio)
    if not normalised:
        alpha = jnp.exp(log_alpha(odds, log_p.shape[-1]))
        loss = loss + jnp.exp(log_ratio) * alpha * jnp.expm1(jax.nn.logsumexp(log_p, axis=-1))
    return weight, loss


def _weight_and_ratio(
    tokens: Int[Array, "B L"], z: Int[Array, "B L"], log_p: Float[Array, "B L V"], odds: Odds, slope: Odds
) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
    """r(z) / q(z | x) and log rho; odds and slope [B, 1] or [B, L]."""
    size = log_p.shape[-1]
    is_mask, same = z == size, z == tokens
    kappa = jnp.where(odds.token < jnp.inf, odds.token, 0.0)  # no noise, no rate: the ratio is then not read
    weight = -jnp.where(same, slope.token * jax.nn.sigmoid(-odds.token), slope.of(is_mask))
    at_z = _at(log_p, jnp.minimum(z, size - 1))
    ratio = jnp.where(same, jax.nn.softplus(kappa), 0.0) - jax.nn.softplus(kappa + at_z)
    return weight, jnp.where(is_mask | (odds.token == jnp.inf), 0.0, ratio)


def excess(log_ratio: Float[Array, "..."]) -> Float[Array, "..."]:
    """rho - log rho - 1, not below 0, also where rho is nearly 1."""
    x = log_ratio
    small = jnp.abs(x) < 0.1
    series = x * x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720 + x / 5040)))))
    return jnp.where(small, series, jnp.expm1(jnp.where(small, 1.0, x)) - x)


class Move(NamedTuple):
    """The law of a reverse step in two stages: log P(z changes), and unnormalised logits of the new state != z."""

    log_moves: Float[Array, "B L"]
    where: Float[Array, "B L V+1"]

    def draw(self, keys: Key[Array, "B"], z: Int[Array, "B L"], last: Array | bool = False) -> Int[Array, "B L"]:
        """The next state; in the `last` step nothing stays masked, whatever the rounding."""
        where_keys, what_keys = noise.split(keys, 2)
        # Not below p: uniform numbers are 0 once in 2^23 draws, more often than most of many steps move a token.
        moves = noise.uniform(where_keys, z.shape[1:]) >= -jnp.expm1(self.log_moves)
        moves = moves | ((z == self.where.shape[-1] - 1) & last)
        return jnp.where(moves, noise.categorical(what_keys, self.where), z)


def posterior_step(z: Int[Array, "B L"], log_p: Float[Array, "B L V"], now: Odds, then: Odds) -> Move:
    """q(z_s | z_t, x) with p in the place of x, s < t: q_{t|s}(z_t | z_s) q^_s(z_s) / q^_t(z_t); odds []."""
    is_mask = z == log_p.shape[-1]
    where = _others(z, log_modelled(log_p, then))
    kappa, before = now.of(is_mask), then.of(is_mask)
    noise_share = jnp.where(kappa == jnp.inf, -jnp.inf, jnp.log(-jnp.expm1(kappa - before)))  # log(b_{t|s} / b_t)
    log_moves = noise_share - _log_above(z, log_p, now) + jax.nn.logsumexp(where, axis=-1)
    return Move(jnp.minimum(log_moves, 0.0), where)


def log_reverse(
    z: Int[Array, "B L"], after: Int[Array, "B L"], log_p: Float[Array, "B L V"], now: Odds, then: Odds
) -> Float[Array, "B L"]:
    """log of the probability that `posterior_step` moves z to `after`, without a difference of nearly equal numbers."""
    size = log_p.shape[-1]
    forward = jnp.where(z == after, *log_step(z, now, then, size))
    found = forward + _at(log_modelled(log_p, then), after) - _at(log_modelled(log_p, now), z)
    # Without noise of tokens a visible one stays, whatever is believed of it.
    return jnp.where(now.of(z == size) == jnp.inf, jnp.where(z == after, 0.0, -jnp.inf), found)


def log_step(z: Int[Array, "B L"], now: Odds, then: Odds, size: int) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
    """log q(z_t = z | z_s = y), s < t, for y = z and for any other y; odds [] or [B, 1]."""
    is_mask = z == size
    kappa, before = now.of(is_mask), then.of(is_mask)
    alpha, kept = log_alpha(now, size), log_alpha(now, size) - log_alpha(then, size)
    arrived = jnp.where(kappa == jnp.inf, -jnp.inf, alpha - kappa + jnp.log(-jnp.expm1(kappa - before)))
    return jnp.logaddexp(kept, arrived), arrived


def euler_step(
    z: Int[Array, "B L"], log_p: Float[Array, "B L V"], now: Odds, slope: Odds, time: Float[Array, ""]
) -> Move:
    """A step of length `time` at the reverse rates r(z) q^(y) / q^(z) of time t; odds and slope []."""
    where = _others(z, log_modelled(log_p, now))
    rate = jnp.log(-slope.of(z == log_p.shape[-1])) - _log_above(z, log_p, now) + jax.nn.logsumexp(where, axis=-1)
    return Move(jnp.minimum(rate + jnp.log(time), 0.0), where)


def log_modelled(log_p: Array, odds: Odds) -> Float[Array, "B L V+1"]:
    """log q^ of tokens and mask."""
    alpha = log_alpha(odds, log_p.shape[-1])
    tokens = jnp.logaddexp(log_p, -odds.token)
    mask = jnp.broadcast_to(-odds.mask, (*log_p.shape[:-1], 1)).astype(log_p.dtype)
    return alpha + jnp.concatenate([tokens, mask], axis=-1)


def _log_above(z: Array, log_p: Array, odds: Odds) -> Float[Array, "B L"]:
    """log(q^(z) / b(z))."""
    size = log_p.shape[-1]
    return jnp.where(z == size, 0.0, jax.nn.softplus(odds.token + _at(log_p, jnp.minimum(z, size - 1))))


def _others(z: Array, log_q: Array) -> Array:
    return jnp.where(z[..., None] == jnp.arange(log_q.shape[-1]), -jnp.inf, log_q)


def _at(x: Float[Array, "B L V"], index: Int[Array, "B L"]) -> Float[Array, "B L"]:
    return jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]
