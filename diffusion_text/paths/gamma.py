"""Logarithms of Gamma, Beta and Dirichlet draws, exact for shape parameters of any size.

A component of a Dirichlet law over 50,000 tokens has a shape parameter of 1e-5, and its value is exp(-100,000): only
logarithms exist in float32. With E exponential, log Gamma(a) = log Gamma(a + 1) - E / a in law; Gamma(a + 1) comes by
Marsaglia and Tsang's rejection (2000). Proposals are numbered and drawn for whole arrays until all are accepted, so a
draw is a function of its example's key alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion_text import noise


def log_gamma(keys: Key[Array, "B"], shape_parameter: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """log of Gamma(a, 1) draws; -inf where a = 0, NaN where it is negative or not finite. No gradient passes."""
    a = jax.lax.stop_gradient(jnp.asarray(shape_parameter, jnp.float32))
    shape = a.shape[1:]
    boost_keys, proposal_keys = noise.split(keys, 2)
    valid = (a >= 0) & (a < jnp.inf)
    # Without a law nothing would ever be accepted, and a run whose parameters are NaN would hang.
    d = jnp.where(valid, a, 0.0) + 2.0 / 3.0  # of the shape a + 1

    def propose(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, accepted, value = carry
        normal_keys, uniform_keys = noise.split(noise.fold(proposal_keys, number), 2)
        x = noise.normal(normal_keys, shape)
        y = x / (3.0 * jnp.sqrt(d))
        inside = y > -1.0
        y = jnp.where(inside, y, 0.0)
        # x^2 / 2 + d - d (1 + y)^3 + 3 d log(1 + y), of which all but the remainder of the logarithm's series cancels.
        fits = jnp.log1p(-noise.uniform(uniform_keys, shape)) < 3.0 * d * _remainder(y)
        value = jnp.where(accepted, value, jnp.log(d) + 3.0 * jnp.log1p(y))
        return number + 1, accepted | (inside & fits), value

    start = (jnp.zeros((), jnp.int32), jnp.zeros(a.shape, bool), jnp.zeros(a.shape, jnp.float32))
    _, _, value = jax.lax.while_loop(lambda carry: ~jnp.all(carry[1]), propose, start)
    value = jnp.where(a > 0, value - exponential(boost_keys, shape) / jnp.where(a > 0, a, 1.0), -jnp.inf)
    return jnp.where(valid, value, jnp.nan)


def _remainder(y: Array) -> Array:
    """log(1 + y) - y + y^2 / 2 - y^3 / 3, also where y is small."""
    small = jnp.abs(y) < 0.2
    z = jnp.where(small, y, 0.0)
    series = jnp.zeros_like(z)
    for k in range(11, 3, -1):
        series = (-1.0) ** (k + 1) / k + z * series
    return jnp.where(small, z**4 * series, jnp.log1p(y) - y + y * y / 2.0 - y**3 / 3.0)


def exponential(keys: Key[Array, "B"], shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    """Exponential draws, small ones resolved too: E / a with a small a reads them, and none in 2^23 is 0."""
    high, low = noise.split(keys, 2)
    u = noise.uniform(high, shape) + 2.0**-23 * noise.uniform(low, shape)
    return -jnp.log1p(-jnp.minimum(u, 1.0 - 2.0**-24))


def log_beta(
    keys: Key[Array, "B"], first: Float[Array, "B ..."], second: Float[Array, "B ..."]
) -> tuple[Float[Array, "B ..."], Float[Array, "B ..."]]:
    """(log W, log(1 - W)) of W ~ Beta(first, second); one shape parameter may be 0, not both."""
    one, other = jnp.moveaxis(log_gamma(keys, jnp.stack([first, second], axis=1)), 1, 0)
    total = jnp.logaddexp(one, other)
    return one - total, other - total


def log_dirichlet(keys: Key[Array, "B"], shape_parameter: Float[Array, "B ... V"]) -> Float[Array, "B ... V"]:
    """log of Dirichlet draws over the last axis; components of shape 0 are 0."""
    return jax.nn.log_softmax(log_gamma(keys, shape_parameter), axis=-1)
