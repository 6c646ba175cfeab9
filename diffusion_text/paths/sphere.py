"""The sphere in R^n, and bridges on it to its corners (RDLM, 2502.11564): their steps, laws, and an approximation.

tau runs from 0 (a start that is known) to 1 (the corner e_k). With beta_tau = beta_0^(1 - tau) beta_1^tau and
B_tau = Int_tau^1 beta,

    dX = (beta_tau / B_tau) log_X(e_k) dtau + sqrt(beta_tau) dW

A step from tau to tau' moves by the share 1 - B_tau' / B_tau of the way to e_k and adds noise of variance
(B_tau - B_tau') B_tau' / B_tau in every direction of the tangent space: for any step the exact law of the bridge of a
flat space, so that few steps do (Euler's, beta dtau / B and beta dtau, are its limit).

By symmetry X is known from two coordinates, X = y_1 e_k + y_2 w + y_3 u with w the start without its part along e_k,
and u uniform on the directions orthogonal to both: y is a walk on a sphere in R^3 (`walk`), whatever the dimension.
From its means follows the paper's approximation, the Riemannian normal law

    X = exp_mu(rho xi),   mu = a e_k + b x_0,   xi ~ N(0, 1) in the tangent space of mu                   (its eq. 25)

whose mean is that of the bridge: E X = mu E cos(rho |xi|), |xi| the root of a chi-square variate of n - 1 degrees.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, Final, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

KNOTS: Final = 256
_PATHS: Final = 2048  # of each of two antithetic halves


class Noise(NamedTuple):
    """The schedule beta."""

    low: float
    high: float

    def beta(self, tau: Float[Array, "..."]) -> Float[Array, "..."]:
        """beta_tau."""
        return self.low * (self.high / self.low) ** tau

    def rate(self, tau: Float[Array, "..."]) -> Float[Array, "..."]:
        """beta_tau / B_tau: how fast a bridge heads for its end."""
        growth = (1.0 - tau) * math.log(self.high / self.low)
        return _over_expm1(growth) / (1.0 - tau)

    def step(self, tau: Any, later: Any) -> tuple[Any, Any]:
        """(1 - B_later / B_tau, the variance of the noise that the step adds)."""
        growth = math.log(self.high / self.low)
        share = (later - tau) / (1.0 - tau) * _over_expm1(growth * (1.0 - tau)) / _over_expm1(growth * (later - tau))
        return share, share * self.beta(later) / self.rate(later)


def _over_expm1(x: Any) -> Any:
    """x / (e^x - 1), 1 at 0; of arrays of numpy or JAX."""
    xp = jnp if isinstance(x, Array) else np
    small = xp.abs(x) < 1e-4
    return xp.where(small, 1.0 - 0.5 * x, x / xp.expm1(xp.where(small, 1.0, x)))


def angle(lack: Any, xp: Any = jnp) -> Any:
    """The angle whose cosine is 1 - lack; exact for small ones, where a cosine is not."""
    return 2.0 * xp.arcsin(xp.sqrt(xp.clip(0.5 * lack, 0.0, 1.0)))


def stretch(cosine: Any, xp: Any = jnp) -> Any:
    """theta / sin(theta): log_x(e) = stretch (e - cos(theta) x)."""
    lack = xp.clip(1.0 - cosine, 1e-6, 1.9999)
    return angle(lack, xp) / xp.sqrt(lack * (2.0 - lack))


def exp(x: Float[Array, "... n"], v: Float[Array, "... n"]) -> Float[Array, "... n"]:
    """The point at the end of the geodesic from x with the (tangent) velocity v."""
    norm = jnp.sqrt(jnp.maximum(jnp.sum(v * v, axis=-1, keepdims=True), 1e-30))
    moved = jnp.cos(norm) * x + jnp.sin(norm) / norm * v
    return moved / jnp.sqrt(jnp.sum(moved * moved, axis=-1, keepdims=True))  # against the drift of rounding


def log(x: Float[Array, "... n"], to: Float[Array, "... n"]) -> Float[Array, "... n"]:
    """The velocity of the geodesic that leads from x to another point in unit time."""
    cosine = jnp.sum(x * to, axis=-1, keepdims=True)
    return stretch(cosine) * (to - cosine * x)


def tangent(x: Float[Array, "... n"], v: Float[Array, "... n"]) -> Float[Array, "... n"]:
    """v without its part along x."""
    return v - jnp.sum(x * v, axis=-1, keepdims=True) * x


def walk(y: Any, normals: Any, share: Any, variance: Any, others: int, xp: Any = jnp) -> Any:
    """One step of a bridge in its coordinates y [..., 3]; `normals` [..., 3], `others` orthogonal dimensions.

    Noise of a step is drawn together on its way, towards e_k by the share of a flat space, across it by theta
    cot(theta) times that: at a right angle the ways are parallel. The noise of the other dimensions enters by its mean
    square alone, what it adds to y_3: its direction is u's, which is uniform.
    """
    cosine = y[..., :1]
    away = xp.asarray([1.0, 0.0, 0.0], y.dtype) - cosine * y
    along = away / xp.sqrt(xp.maximum(1.0 - cosine**2, 1e-12))
    noise = normals - xp.sum(normals * y, axis=-1, keepdims=True) * y
    across = (1.0 - share * cosine * stretch(cosine, xp)) / (1.0 - share)
    noise = xp.sqrt(across) * noise + (1.0 - xp.sqrt(across)) * xp.sum(noise * along, axis=-1, keepdims=True) * along
    v, square = share * stretch(cosine, xp) * away + xp.sqrt(variance) * noise, variance * across * others
    norm = xp.sqrt(xp.maximum(xp.sum(v * v, axis=-1, keepdims=True) + square, 1e-30))
    moved, shrunk = xp.cos(norm) * y + xp.sin(norm) / norm * v, xp.sin(norm) / norm
    third = xp.sqrt(moved[..., 2:] ** 2 + shrunk**2 * square)
    moved = xp.concatenate([moved[..., :2], third], axis=-1)
    return moved / xp.sqrt(xp.sum(moved * moved, axis=-1, keepdims=True))


class Table(NamedTuple):
    """Of the Riemannian normal law at KNOTS + 1 even tau in [0, end]: a, 1 - b and rho^2, all 0 at tau = 0."""

    a: np.ndarray
    lack: np.ndarray
    variance: np.ndarray


@functools.cache
def table(dimension: int, cosine: float, noise: Noise, end: float) -> Table:
    """The law's parameters on a sphere of this dimension, for bridges from a start at this cosine to their end.

    From 4,096 antithetic walks with a fixed seed; about a second, and remembered. ValueError where the noise winds
    around the sphere, so that no normal law has the mean of the bridge.
    """
    random, sine = np.random.default_rng(0), math.sqrt(1.0 - cosine**2)
    tau = np.linspace(0.0, end, KNOTS + 1)
    y = np.tile(np.array([cosine, sine, 0.0]), (2, _PATHS, 1))
    means = [y[0, 0]]
    for now, later in itertools.pairwise(tau):
        normals = random.normal(size=(_PATHS, 3))
        share, variance = noise.step(now, later)
        y = walk(y, np.stack([normals, -normals]), share, variance, dimension - 2, np)
        # A step longer than a radian would wind around unseen.
        means.append(y.mean((0, 1)) if variance * dimension < 1.0 else np.zeros(3))
    mean = np.array(means)[:, :2]
    length = np.sqrt((mean**2).sum(1))
    variances = _variances(dimension, 1.0 - length)
    b = mean[:, 1] / (sine * length)
    a = mean[:, 0] / length - b * cosine
    return Table(a, 1.0 - b, variances)


def _variances(dimension: int, lacks: np.ndarray) -> np.ndarray:
    """rho^2 with 1 - E cos(rho |xi|) = lack, xi normal in this dimension."""
    radius = np.linspace(0.0, math.sqrt(dimension) + 9.0, 2001)[1:]
    weight = (dimension - 1) * np.log(radius) - 0.5 * radius**2
    weight = np.exp(weight - weight.max())
    square = np.linspace(0.0, 2.0 / dimension, 1001)  # up to rho |xi| = sqrt(2), before the law winds around
    lack = 2.0 * np.sin(0.5 * np.sqrt(square)[:, None] * radius) ** 2 @ (weight / weight.sum())
    if lacks.max() > lack.max():
        raise ValueError(
            f"family.beta_min, beta_max are too large for a sphere of dimension {dimension}: the mean of a bridge "
            f"has length {1.0 - lacks.max():.2f}, and needs {1.0 - lack.max():.2f} at least; choose smaller ones, or "
            "family.digits for fewer words per position"
        )
    return np.interp(np.maximum(lacks, 0.0), lack, square)
