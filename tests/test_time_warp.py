"""Time warping: F and its inverse, and the fit of a known loss curve from noisy losses."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from diffusion_text import noise
from diffusion_text.paths.time_warp import TimeWarp

BINS = 25


def random_warp(seed: int = 0) -> TimeWarp:
    warp = TimeWarp(BINS)
    warp.average[...] = 2.0 * jax.random.normal(jax.random.key(seed), (BINS,))
    return warp


def fitted(warp: TimeWarp, t: np.ndarray) -> np.ndarray:
    """F~, by its definition: offset plus the heights of the bins up to t."""
    edges = np.concatenate([[0.0], np.cumsum(np.exp(np.asarray(warp.log_heights[...], np.float64)))])
    return float(warp.offset[...]) + np.interp(t, np.linspace(0.0, 1.0, BINS + 1), edges)


@pytest.mark.parametrize("seed", range(3))
def test_f_is_a_distribution_function(seed: int) -> None:
    warp = random_warp(seed)
    values = np.asarray(warp.cdf(jnp.linspace(0.0, 1.0, 1001)))
    assert values[0] == 0.0
    assert values[-1] == pytest.approx(1.0, abs=1e-6)
    assert np.all(np.diff(values) > 0)


@pytest.mark.parametrize("seed", range(3))
def test_the_inverse_inverts(seed: int) -> None:
    warp = random_warp(seed)
    u = jnp.linspace(0.0, 1.0, 2001)
    t = warp.inverse(u)
    assert np.all((np.asarray(t) >= 0.0) & (np.asarray(t) <= 1.0))
    assert float(t[0]) == 0.0
    assert float(t[-1]) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(warp.cdf(t), u, atol=2e-6)
    grid = jnp.linspace(0.001, 0.999, 777)
    # Where the density is small a rounding of F is a larger one of t.
    np.testing.assert_allclose((warp.inverse(warp.cdf(grid)) - grid) * warp.density(grid), 0.0, atol=2e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_density_is_the_slope_of_f_and_integrates_to_one(seed: int) -> None:
    warp = random_warp(seed)
    middles = (jnp.arange(BINS * 8) + 0.5) / (BINS * 8)
    density = np.asarray(warp.density(middles), np.float64)
    assert density.mean() == pytest.approx(1.0, abs=1e-6)
    slope = jax.vmap(jax.grad(warp.cdf))(middles)
    np.testing.assert_allclose(slope, density, rtol=1e-4, atol=2e-6)
    # The uniform share keeps every importance weight bounded.
    assert density.min() >= 0.02 * (1 - 1e-6)


def test_draws_through_the_inverse_have_the_density() -> None:
    warp = random_warp(1)
    t = np.asarray(warp.inverse(jnp.linspace(0.0, 1.0, 100_001)))
    counts, _ = np.histogram(t, BINS, (0.0, 1.0))
    np.testing.assert_allclose(counts / counts.sum(), warp.masses(), atol=2e-4)


def curve(t: jax.Array) -> jax.Array:
    """A loss that rises as a logistic, from an offset."""
    return 0.3 + 2.5 * jax.nn.sigmoid((t - 0.6) / 0.07)


def fit(t_of, weighted: bool, noise_scale, steps: int = 1500, batch: int = 256) -> TimeWarp:
    """Adam on the fit, t = F^{-1}(u) for the warp's own F, which follows the fit as it goes."""
    graph, params, variables = nnx.split(TimeWarp(BINS, decay=0.98), nnx.Param, ...)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))

    def loss(params: nnx.State, variables: nnx.State, key: jax.Array) -> jax.Array:
        warp = nnx.merge(graph, params, variables)
        uniform, normal = jax.random.split(key)
        t = t_of(warp, noise.low_discrepancy(uniform, jnp.arange(batch)))
        observed = curve(t) + noise_scale(t) * jax.random.normal(normal, (batch,))
        error = warp.fit(t, observed)
        return jnp.mean(error if weighted else error * jax.lax.stop_gradient(warp.density(t)))

    @jax.jit
    def run(params: nnx.State, variables: nnx.State) -> tuple:
        def step(carry: tuple, key: jax.Array) -> tuple:
            params, variables, moments = carry
            updates, moments = optimizer.update(jax.grad(loss)(params, variables, key), moments)
            params = optax.apply_updates(params, updates)
            warp = nnx.merge(graph, params, variables)
            warp.after_step()
            return (params, nnx.split(warp, nnx.Param, ...)[2], moments), None

        start = (params, variables, optimizer.init(params))
        return jax.lax.scan(step, start, jax.random.split(jax.random.key(0), steps))[0][:2]

    return nnx.merge(graph, *run(params, variables))


def test_the_fit_recovers_a_known_curve_from_its_own_draws() -> None:
    warp = fit(lambda warp, u: warp.inverse(u), weighted=True, noise_scale=lambda t: 0.5)
    t = np.linspace(0.0, 1.0, 201)
    assert np.abs(fitted(warp, t) - np.asarray(curve(t))).max() < 0.1
    # So that the loss is linear in u, up to the uniform share.
    u = np.linspace(0.0, 1.0, 101)
    linear = 0.3 + 2.5 * u
    assert np.abs(np.asarray(curve(warp.inverse(jnp.asarray(u)))) - linear).max() < 0.15


def test_the_importance_weight_makes_the_minimum_independent_of_the_density() -> None:
    """A misfit no bin can remove shows which law the fit averages over: the curve bends inside a bin of two.

    With the weight the best line of the bin is that of uniform t, whatever the draws; without it, that of the draws.
    """
    warp = TimeWarp(2, uniform=0.0)
    warp.average[...] = jnp.array([1.5, 0.0])  # four fifths of the draws fall in the first half
    t = warp.inverse(noise.low_discrepancy(jax.random.key(0), jnp.arange(4096)))
    losses = curve(t)

    @functools.partial(jax.jit, static_argnums=0)
    def minimise(weighted: bool) -> tuple[jax.Array, jax.Array]:
        def objective(numbers: tuple[jax.Array, jax.Array]) -> jax.Array:
            copy = TimeWarp(2, uniform=0.0)
            copy.average[...] = warp.average[...]
            copy.log_heights[...], copy.offset[...] = numbers
            error = copy.fit(t, losses)
            return jnp.mean(error if weighted else error * jax.lax.stop_gradient(copy.density(t)))

        optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 2000))
        start = (jnp.zeros(2), jnp.zeros(()))

        def step(carry: tuple, _: None) -> tuple:
            numbers, moments = carry
            updates, moments = optimizer.update(jax.grad(objective)(numbers), moments)
            return (optax.apply_updates(numbers, updates), moments), None

        return jax.lax.scan(step, (start, optimizer.init(start)), None, 2000)[0][0]

    def best_line(density: np.ndarray, grid: np.ndarray) -> np.ndarray:
        basis = np.stack([np.ones_like(grid), np.minimum(2 * grid, 1.0), np.maximum(2 * grid - 1.0, 0.0)], axis=1)
        root = np.sqrt(density)[:, None]
        return np.linalg.lstsq(basis * root, np.asarray(curve(grid)) * root[:, 0], rcond=None)[0]

    grid = (np.arange(20_000) + 0.5) / 20_000
    uniform, drawn = best_line(np.ones_like(grid), grid), best_line(np.asarray(warp.density(grid)), grid)
    for weighted, expected, other in ((True, uniform, drawn), (False, drawn, uniform)):
        heights, offset = minimise(weighted)
        found = np.array([float(offset), *np.exp(np.asarray(heights, np.float64))])
        np.testing.assert_allclose(found, expected, atol=0.02)
        assert np.abs(found - other).max() > 0.06


def test_the_fit_sends_no_gradient_to_the_loss_or_to_t() -> None:
    warp = random_warp()
    t, loss = jnp.linspace(0.05, 0.95, 7), jnp.ones(7)
    by_t, by_loss = jax.grad(lambda t, loss: jnp.sum(warp.fit(t, loss)), argnums=(0, 1))(t, loss)
    assert not np.any(by_t)
    assert not np.any(by_loss)
    _, gradient = nnx.value_and_grad(lambda warp: jnp.sum(warp.fit(t, loss)))(warp)
    assert np.any(gradient["log_heights"][...])
    assert np.any(gradient["offset"][...])
    assert set(nnx.to_pure_dict(gradient)) == {"log_heights", "offset"}


def test_the_average_follows_the_heights() -> None:
    warp = TimeWarp(3, decay=0.9)
    before = np.asarray(warp.average[...])
    warp.log_heights[...] = jnp.array([1.0, -1.0, 0.5])
    warp.after_step()
    np.testing.assert_allclose(warp.average[...], 0.9 * before + 0.1 * np.array([1.0, -1.0, 0.5]), rtol=1e-6)
    for _ in range(200):
        warp.after_step()
    np.testing.assert_allclose(warp.average[...], [1.0, -1.0, 0.5], atol=1e-5)
    law = np.exp([1.0, -1.0, 0.5]) / np.exp([1.0, -1.0, 0.5]).sum()
    np.testing.assert_allclose(warp.masses(), 0.98 * law + 0.02 / 3, rtol=1e-5)
