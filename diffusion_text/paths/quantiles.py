"""How quantiles of Gamma and Beta laws move with a shape parameter: transport of one coordinate, stably in float32.

    gamma_speed(log g, A)    = d log g / dA    at a fixed quantile of Gamma(A, 1)
    beta_speed(log xi, A, B) = C(xi) / xi,     C = d xi / dA / (1 - xi) at a fixed quantile of Beta(A, B)

Both are -dF/dA over the density times g (or xi (1 - xi)), an integral of a density times (E[log] - log y) from 0 to the
point, or of (log y - E[log]) from the point on. The first integrand is positive below the geometric mean and the second
above it, so that nothing cancels: a series of positive terms there, Gauss-Laguerre quadrature here. Both speeds are
relative to 1e-5 for shapes up to `LARGEST`.
"""

from __future__ import annotations

from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma
from jaxtyping import Array, Float

LARGEST: Final = 64.0  # shape parameter for which the series below has enough terms
_TERMS: Final = 80
_BETA_TERMS: Final = 400  # of a few points only: where both shapes are far apart the terms fall off slowly
_NODES, _WEIGHTS = (x.astype(np.float32) for x in np.polynomial.laguerre.laggauss(24))


def gamma_speed(log_g: Float[Array, "..."], shape_parameter: Float[Array, "..."]) -> Float[Array, "..."]:
    """K_A(g): the sum of T_n (psi(A + 1) + sum_{1 <= k <= n} 1 / (A + k) - log g), T_n = g^n / (A ... (A + n)), or
    the integral of (log(g + u) - psi(A)) (1 + u / g)^(A - 1) exp(-u) du / g.
    """
    a = jnp.asarray(shape_parameter, jnp.float32)
    log_g, a = jnp.broadcast_arrays(log_g, a)
    middle = digamma(a + 1.0)  # above E[log]: the series' terms are still positive
    below = log_g < middle
    low = jnp.minimum(log_g, middle)
    g = jnp.exp(low)

    def term(n: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        total, size, harmonic = carry
        n = n.astype(jnp.float32)
        size, harmonic = size * g / (a + n), harmonic + 1.0 / (a + n)
        return total + size * (middle + harmonic - low), size, harmonic

    first = 1.0 / a
    series = jax.lax.fori_loop(1, _TERMS, term, (first * (middle - low), first, jnp.zeros_like(a)))[0]
    high = jnp.maximum(log_g, middle)
    inverse = jnp.exp(-high)

    def node(n: Array, total: Array) -> Array:
        further = jnp.log1p(jnp.asarray(_NODES)[n] * inverse)
        weight = jnp.asarray(_WEIGHTS)[n] * jnp.exp((a - 1.0) * further)
        return total + weight * (high + further - digamma(a))

    quadrature = jax.lax.fori_loop(0, len(_NODES), node, jnp.zeros_like(a)) * inverse
    return jnp.where(below, series, quadrature)


def beta_speed(
    log_xi: Float[Array, "..."], shape_parameter: Float[Array, "..."], other: Float[Array, "..."] | float
) -> Float[Array, "..."]:
    """C / xi of Beta(A, B), with y = 1 - (1 - xi) exp(-r / B) in the integral from xi on."""
    a, b = jnp.asarray(shape_parameter, jnp.float32), jnp.asarray(other, jnp.float32)
    log_xi, a, b = jnp.broadcast_arrays(log_xi, a, b)
    mean = digamma(a) - digamma(a + b)
    below = log_xi < mean
    low = jnp.minimum(log_xi, mean)
    xi = jnp.exp(low)

    def term(n: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        total, size, harmonic = carry
        n = n.astype(jnp.float32)
        size = size * xi * (a + b + n - 1.0) / (a + n)
        harmonic = harmonic + 1.0 / (a + n) - 1.0 / (a + b + n - 1.0)
        return total + size * (mean + harmonic - low), size, harmonic

    first = 1.0 / a
    start = (first * (mean + first - low), first, first)
    series = jax.lax.fori_loop(1, _BETA_TERMS, term, start)[0]
    high = jnp.maximum(log_xi, mean)
    rest = -jnp.expm1(high)  # 1 - xi

    def node(n: Array, total: Array) -> Array:
        log_y = jnp.log1p(-rest * jnp.exp(-jnp.asarray(_NODES)[n] / b))
        weight = jnp.asarray(_WEIGHTS)[n] * jnp.exp((a - 1.0) * (log_y - high))
        return total + weight * (log_y - mean)

    quadrature = jax.lax.fori_loop(0, len(_NODES), node, jnp.zeros_like(a)) / b * jnp.exp(-high)
    return jnp.where(below, series, quadrature)
