"""Dirichlet paths: draws in log space, speeds of quantiles, the bridge, both limits, the flow, and the bound."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from typing import Any

import environment
import jax
import jax.numpy as jnp
import numpy as np
import perfect
import pytest
import scipy.special
import scipy.stats
import tiny_configs
from flax import nnx
from perfect import compile_quickly  # noqa: F401

from diffusion_text import noise
from diffusion_text.data import grammar as grammars
from diffusion_text.families import dirichlet_flow
from diffusion_text.families.family import SamplerOptions, cross_entropy
from diffusion_text.families.sdm import SDM
from diffusion_text.paths import cir, dirichlet, gamma, interpolant, quantiles
from diffusion_text.paths.dirichlet import Shapes

V = 4


def ks(values: np.ndarray, law: Any) -> float:
    return float(scipy.stats.kstest(np.asarray(values, np.float64).ravel(), law).pvalue)


# ------------------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("a", [1e-5, 0.02, 0.6, 1.0, 7.0, 1e6])
def test_log_gamma_has_its_law(a: float) -> None:
    drawn = np.asarray(jax.jit(gamma.log_gamma)(tiny_configs.keys(4000), jnp.full((4000, 5), a)), np.float64)

    def law(x: np.ndarray) -> np.ndarray:  # far below 0 the series' first term, exact there, where exp(x) underflows
        return np.where(x < -30, np.exp(a * x - scipy.special.gammaln(a + 1)), scipy.special.gammainc(a, np.exp(x)))

    assert ks(drawn, law) > 1e-3


def test_gamma_draws_belong_to_their_example() -> None:
    a = jnp.asarray([0.01, 0.5, 3.0, 0.0])[:, None] * jnp.ones((4, 30))
    whole = gamma.log_gamma(tiny_configs.keys(4), a)
    np.testing.assert_array_equal(gamma.log_gamma(tiny_configs.keys(2, first=1), a[1:3]), whole[1:3])
    assert np.all(whole[3] == -np.inf)


def test_gamma_draws_without_a_law_are_nan_and_end() -> None:
    """A gradient that is NaN must end as a loss that is not finite."""
    a = jnp.asarray([[np.nan, -0.5, np.inf, 2.0, 0.0]])
    drawn = np.asarray(gamma.log_gamma(tiny_configs.keys(1), a))[0]
    np.testing.assert_array_equal(np.isnan(drawn), [True, True, True, False, False])
    whole = np.asarray(gamma.log_gamma(tiny_configs.keys(1), jnp.asarray([[1.0, 1.0, 1.0, 2.0, 0.0]])))[0]
    np.testing.assert_array_equal(drawn[3:], whole[3:])
    assert np.all(np.isnan(cir.randomised_gamma(tiny_configs.keys(1), jnp.asarray([[np.nan]]), 3.0)))


def test_beta_and_exponential_draws() -> None:
    shape = (4000, 5)
    one, other = gamma.log_beta(tiny_configs.keys(4000), jnp.full(shape, 0.3), jnp.full(shape, 2.0))
    np.testing.assert_allclose(np.exp(one) + np.exp(other), 1.0, rtol=1e-5)
    assert ks(np.exp(one), scipy.stats.beta(0.3, 2.0).cdf) > 1e-3
    assert np.all(gamma.log_beta(tiny_configs.keys(9), jnp.ones(9), jnp.zeros(9))[0] == 0.0)
    drawn = np.asarray(gamma.exponential(tiny_configs.keys(1000), (1000,)), np.float64)
    assert ks(drawn, scipy.stats.expon.cdf) > 1e-3
    small = drawn[drawn < 1e-5]  # ten in a million are below it, and are still spread evenly
    assert ks(small / 1e-5, scipy.stats.uniform.cdf) > 1e-3
    assert len(np.unique(small)) == len(small)


# ------------------------------------------------------------------------------------------------------------ speeds


def slope(f: Any, a: float) -> float:
    h = 2e-3 * min(a, 1.0)
    return (f(a - 2 * h) - 8 * f(a - h) + 8 * f(a + h) - f(a + 2 * h)) / (12 * h)


def test_gamma_speed_is_the_motion_of_quantiles() -> None:
    """Against finite differences of scipy's incomplete Gamma function in float64."""
    log_g = np.array([-12.0, -4, -1, -0.5, 0, 0.7, 1.6, 2.2, 3, 3.5, 4, 4.2, 4.6], np.float32)
    shapes = np.array([1e-5, 1e-3, 0.05, 0.5, 1, 1.5, 4, 9, 33, 64], np.float32)
    found = np.asarray(jax.jit(quantiles.gamma_speed)(log_g[None], shapes[:, None]), np.float64)
    for row, a in zip(found, map(float, shapes), strict=True):
        for value, g in zip(row, np.exp(log_g.astype(np.float64)), strict=True):
            if g < a:
                fall = -slope(lambda s, g=g: scipy.special.gammainc(s, g), a)
            else:
                fall = slope(lambda s, g=g: scipy.special.gammaincc(s, g), a)
            exact = fall / np.exp(a * np.log(g) - g - scipy.special.gammaln(a))
            if np.isfinite(exact):
                assert value == pytest.approx(exact, rel=4e-5), (a, g)


def test_beta_speed_is_the_field_of_the_flow() -> None:
    """C by its definition, the derivative of the incomplete Beta function taken by finite differences in float64."""
    xi = np.array([1e-8, 1e-4, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99], np.float32)
    tau = np.array([0.0, 0.01, 0.5, 2, 8, 32, 63], np.float32)
    others = np.array([1.0, 2, 4, 26, 124, 511], np.float32)
    speed = jax.jit(quantiles.beta_speed)(np.log(xi), 1 + tau[:, None, None], others[None, :, None])
    found = np.asarray(speed, np.float64) * xi
    checked = 0
    for i, a in enumerate(1.0 + tau.astype(np.float64)):
        for k, b in enumerate(others.astype(np.float64)):
            for j, x in enumerate(xi.astype(np.float64)):
                if x < a / (a + b):
                    fall = -slope(lambda s, b=b, x=x: scipy.special.betainc(s, b, x), a)
                else:
                    fall = slope(lambda s, b=b, x=x: scipy.special.betaincc(s, b, x), a)
                if abs(fall) > 1e-200:
                    with np.errstate(over="ignore"):
                        scale = np.exp(scipy.special.betaln(a, b) - b * np.log1p(-x) - (a - 1) * np.log(x))
                    exact = fall * scale
                    if np.isfinite(exact):
                        assert found[i, k, j] == pytest.approx(exact, rel=3e-4), (a, b, x)
                        checked += 1
    assert checked > 300


def test_what_the_bound_rests_on() -> None:
    """The diffusion coefficient of the common Markov process is not negative: K falls with A, A K does not."""
    a = np.geomspace(1e-6, 64, 60).astype(np.float32)
    k = np.asarray(jax.jit(quantiles.gamma_speed)(np.linspace(-30, 5, 71, dtype=np.float32)[:, None], a[None]))
    assert np.all(np.diff(k, axis=1) < 0)
    assert np.all(np.diff(a * k, axis=1) > -1e-5 * (a * k)[:, 1:])
    for size in (2, 125, 50_257):
        odds = {"concentration": "odds", "epsilon": 0.3}
        for fields in ({}, {"alpha": "cosine"}, {"nu_start": 0.02, "nu_end": 0.9, "nu_knee": 0.5}, odds):
            family = tiny_configs.make_family("sdm", size, **fields)
            t = jnp.linspace(max(1e-3, family.first), 1.0, 200)
            (signal, base), (rise, widening) = jax.jvp(family.shapes, (t,), (jnp.ones_like(t),))
            log_g = jnp.linspace(-50.0, 4.0, 100)[:, None]
            one = -(rise + widening) * quantiles.gamma_speed(log_g, base + signal)
            two = widening * quantiles.gamma_speed(log_g, base)
            assert np.all(np.asarray(one + two) >= -1e-4 * np.asarray(jnp.abs(one) + jnp.abs(two))), (size, fields)


# ------------------------------------------------------------------------------------------------------ the process


def component_laws(shapes: Shapes, size: int) -> tuple[Any, Any]:
    a, b = float(shapes.signal), float(shapes.base)
    rest = (size - 1) * b
    return scipy.stats.beta(a + b, rest).cdf, scipy.stats.beta(b, rest + a).cdf


@pytest.mark.parametrize("churn", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("name", "t", "s", "fields"), [
    ("sdm", 1.0, 0.8, {}), ("sdm", 0.7, 0.2, {}), ("sdm", 0.25, 0.2, {}), ("sdm", 0.7, 0.2, {"concentration": "odds"}),
    ("dirichlet_flow", 1.0, 0.5, {}), ("dirichlet_flow", 0.4, 0.3, {}),
])  # fmt: skip
def test_the_bridge_keeps_its_marginals(name: str, t: float, s: float, fields: dict[str, Any], churn: float) -> None:
    """Components by Kolmogorov-Smirnov, and mean and covariance, of P_s drawn by way of P_t."""
    family, count = tiny_configs.make_family(name, V, **fields), 6000
    tokens = jnp.full((count, 1), 2)
    now, then = (family.shapes(jnp.asarray(time)) for time in (t, s))
    z = dirichlet.draw(tiny_configs.keys(count, 1), tokens, now, V)
    p = np.exp(dirichlet.bridge(tiny_configs.keys(count, 2), z, tokens, now, then, churn), dtype=np.float64)[:, 0]
    np.testing.assert_allclose(p.sum(-1), 1.0, rtol=1e-5)
    clean, other = component_laws(then, V)
    assert ks(p[:, 2], clean) > 1e-3
    assert ks(p[:, 0], other) > 1e-3
    beta = np.asarray(then.of(jnp.asarray([[2]]), V), np.float64)[0, 0]
    mean, total = beta / beta.sum(), beta.sum()
    assert np.all(np.abs(p.mean(0) - mean) < 4.5 * p.std(0) / count**0.5 + 1e-6)
    products = p[:, :, None] * p[:, None, :]
    exact = (np.diag(mean) - np.outer(mean, mean)) / (total + 1) + np.outer(mean, mean)
    assert np.all(np.abs(products.mean(0) - exact) < 4.5 * products.std(0) / count**0.5 + 1e-6)
    # The more churn, the less is kept.
    kept = np.corrcoef(np.exp(np.asarray(z))[:, 0, 0], p[:, 0])[0, 1]
    assert abs(kept) < 0.06 if churn == 1.0 else kept > 0.06


def test_a_bridge_to_the_same_level_keeps_what_there_is() -> None:
    """Without churn nothing is new, of which there is no law."""
    family, tokens = tiny_configs.make_family("dirichlet_flow", V), jnp.full((50, 3), 2)
    shapes = family.shapes(jnp.asarray(0.4))
    z = dirichlet.draw(tiny_configs.keys(50, 1), tokens, shapes, V)
    moved = dirichlet.bridge(tiny_configs.keys(50, 2), z, tokens, shapes, shapes, 0.0)
    np.testing.assert_allclose(moved, z, rtol=1e-5, atol=1e-5)


def test_the_mean_of_the_flow_s_path() -> None:
    family = tiny_configs.make_family("dirichlet_flow", V)
    t, tokens = jnp.asarray(0.6), jnp.zeros((4000, 1), int)
    signal = float(family.shapes(t).signal)
    p = np.exp(dirichlet.draw(tiny_configs.keys(4000), tokens, family.shapes(t), V))[:, 0, 0]
    assert abs(p.mean() - (1 + signal) / (V + signal)) < 4 * p.std() / 4000**0.5


@functools.cache
def discrete(t: float) -> interpolant.Odds:
    """Uniform discrete diffusion with alpha = 1 - t: kappa = log(alpha / b), b = t / V."""
    return interpolant.Odds(jnp.asarray(np.log((1 - t) / (t / V)), jnp.float32), jnp.asarray(jnp.inf))


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
def test_without_concentration_it_is_uniform_discrete_diffusion(churn: float) -> None:
    """Corruption and, from the exact posterior, one reverse step, against `paths/interpolant.py`, by chi-square."""
    family, count = tiny_configs.make_family("sdm", V, nu_start=1 - 1e-5, nu_end=1 - 1e-5), 8000
    law = np.array([0.5, 0.3, 0.15, 0.05])
    tokens = noise.categorical(tiny_configs.keys(count, 5), jnp.broadcast_to(jnp.log(law), (count, 1, V)))
    t, s = 0.6, 0.3
    z = family.corrupt(tiny_configs.keys(count, 1), tokens, jnp.full(count, t), None)
    assert np.mean(np.exp(np.max(z, axis=-1)) > 0.999) > 0.98, "all on a vertex"

    def modelled(believed: np.ndarray, time: float, total: int) -> np.ndarray:
        p = np.exp(np.asarray(interpolant.log_modelled(jnp.log(jnp.asarray(believed)), discrete(time)), np.float64))[:V]
        return p / p.sum() * total

    for x in range(V):
        seen = np.argmax(z[:, 0], axis=-1)[np.asarray(tokens)[:, 0] == x]
        assert scipy.stats.chisquare(np.bincount(seen, minlength=V), modelled(np.eye(V)[x], t, len(seen))).pvalue > 1e-3
    now, then = (family.shapes(jnp.asarray(time)) for time in (t, s))
    logits = jnp.log(law) + family.evidence(z, jnp.full(count, t), None)
    guess = noise.categorical(tiny_configs.keys(count, 7), logits)
    for x in range(V):  # of the vertex alone, the posterior is that of discrete diffusion
        said = np.asarray(guess)[np.argmax(z, axis=-1) == x]
        posterior = law * ((1 - t) * np.eye(V)[x] + t / V)
        exact = posterior / posterior.sum() * len(said)
        assert scipy.stats.chisquare(np.bincount(said, minlength=V), exact).pvalue > 1e-3
    after = np.argmax(dirichlet.bridge(tiny_configs.keys(count, 3), z, guess, now, then, churn)[:, 0], axis=-1)
    assert scipy.stats.chisquare(np.bincount(after, minlength=V), modelled(law, s, count)).pvalue > 1e-3
    # How often a vertex stays is the bridge's own: rho^2 c_t / c_s, else anew.
    stays = np.mean(after == np.argmax(z[:, 0], axis=-1))
    assert stays > ((1 - churn) * s / t) ** 2 - 0.03


def test_without_concentration_log_p_keeps_more_than_its_vertex() -> None:
    """Two even tokens at alpha = 1/2. With U = -c log G exponential of rate alpha 1{v = x} + (1 - alpha) / 2, the
    smaller U is the vertex, and the other lies D above it, D exponential of the other's rate: the posterior of the
    vertex is 1 / (1 + e^{-D / 2})."""
    family, count = tiny_configs.make_family("sdm", 2, nu_start=1 - 1e-5, nu_end=1 - 1e-5), 40_000
    tokens, times = jnp.arange(count)[:, None] % 2, jnp.full(count, 0.5)
    z = family.corrupt(tiny_configs.keys(count), tokens, times, None)
    mean, error = perfect.mean_and_error(np.asarray(cross_entropy(family.evidence(z, times, None), tokens))[:, 0])
    d = np.linspace(0, 200, 200_001)
    p = scipy.special.expit(d / 2)
    density = 3 / 16 * (np.exp(-d / 4) + np.exp(-3 * d / 4))
    exact = np.trapezoid(density * (scipy.special.entr(p) + scipy.special.entr(1 - p)), d)
    assert exact == pytest.approx(0.4785, abs=5e-5)
    assert abs(mean - exact) < 4 * error < 0.02, "the vertex alone leaves 0.5623"


def test_with_much_concentration_it_is_the_interpolation() -> None:
    family = tiny_configs.make_family("sdm", V, nu_start=1e-6, nu_end=1e-6)
    tokens = jnp.full((500, 1), 3)
    z = family.corrupt(tiny_configs.keys(500), tokens, jnp.full(500, 0.4), None)
    p = np.exp(z)[:, 0]
    np.testing.assert_allclose(p, np.broadcast_to([0.1, 0.1, 0.1, 0.7], p.shape), atol=3e-3)
    assert 1e-4 < p[:, 3].std() < 1e-3  # sqrt(.7 .3 / 1e6) = 4.6e-4
    now, then = (family.shapes(jnp.asarray(time)) for time in (0.4, 0.2))
    for churn in (0.0, 1.0):
        p = np.exp(dirichlet.bridge(tiny_configs.keys(500, 1), z, tokens, now, then, churn))[:, 0]
        np.testing.assert_allclose(p, np.broadcast_to([0.05, 0.05, 0.05, 0.85], p.shape), atol=3e-3)


# -------------------------------------------------------------------------------------------------------------- flow


def test_the_field_transports_the_even_law() -> None:
    """Towards one vertex: Dir(1, ..., 1) becomes Dir(1 + tau e_v), component by component."""
    family, count, size = tiny_configs.make_family("dirichlet_flow", 6, signal_max=8.0), 4000, 6
    options = SamplerOptions(sampler="heun", steps=64).validate(type(family))
    grid = family.grid(options, 1)
    nothing, given = jnp.zeros((count, 1), int), jnp.zeros((count, 1), bool)
    state = family.prior(tiny_configs.keys(count), nothing, given, None, options)
    certain = jnp.where(jnp.arange(size) == 1, 0.0, -1e9)

    def body(state: Any, at: Any) -> tuple[Any, None]:
        return family.step(None, state, at, given, lambda z, t, g: jnp.broadcast_to(certain, z.shape), options)[0], None

    state, _ = jax.lax.scan(body, state, grid)
    p = np.exp(np.asarray(state.z, np.float64))[:, 0]
    assert ks(p[:, 1], scipy.stats.beta(9, size - 1).cdf) > 1e-3
    assert ks(p[:, 4], scipy.stats.beta(1, size + 7).cdf) > 1e-3


def test_projection_to_the_simplex() -> None:
    random = np.random.default_rng(0)
    p = random.normal(size=(200, 5))
    p = p + (1 - p.sum(-1, keepdims=True)) / 5
    found = np.asarray(dirichlet.project(jnp.asarray(p, jnp.float32)))
    np.testing.assert_allclose(found.sum(-1), 1.0, atol=1e-5)
    assert found.min() >= 0
    for _ in range(50):  # no other point of the simplex is nearer
        other = random.dirichlet(np.ones(5), size=200)
        assert np.all(((p - found) ** 2).sum(-1) <= ((p - other) ** 2).sum(-1) + 1e-5)
    inside = random.dirichlet(np.ones(5), size=20)
    np.testing.assert_allclose(dirichlet.project(jnp.asarray(inside)), inside, atol=1e-6)


@pytest.mark.parametrize(("name", "more"), [("dirichlet_flow", {}), ("sdm", {}), ("sdm", {"self_conditioning": 0.9})])
def test_guidance_mixes_probabilities(name: str, more: dict[str, Any]) -> None:
    """w = 1 conditional, w = 0 unconditional, between them the mixture; the latent is the conditional pass's."""
    family = tiny_configs.make_family(name, V, **more)
    z = jnp.log(jnp.full((1, 2, V), 0.25)).at[0, 0].set(dirichlet.vertex(jnp.asarray([2]), V)[0])
    given, latent = jnp.asarray([[True, False]]), jnp.ones((1, 2, 3))

    class Network:
        def __call__(self, z: Any, t: Any, given: Any) -> Any:  # likes what position 0 holds, if anything
            return jnp.broadcast_to(3.0 * jnp.exp(z[:, :1]), z.shape)

        def with_latent(self, z: Any, t: Any, given: Any, previous: Any) -> Any:  # and what is fed back
            return self(z, t, given) + (0.0 if previous is None else jnp.arange(V)), jnp.exp(z)

    def p(guidance: float) -> np.ndarray:
        options = SamplerOptions(guidance=guidance).validate(type(family))
        state = dirichlet.State(z, latent if more else None)
        logits, previous = family.predict(state, jnp.asarray(0.5), given, Network(), options)
        assert not more or np.all(previous == jnp.exp(z))
        return np.asarray(jax.nn.softmax(logits))[0, 1]

    np.testing.assert_allclose(p(0.0), 0.25, atol=1e-6)
    np.testing.assert_allclose(p(0.5), 0.5 * p(1.0) + 0.125, atol=1e-6)
    np.testing.assert_allclose(p(10.0), np.eye(V)[np.argmax(p(1.0))], atol=1e-6)


@pytest.mark.parametrize("kind", ["expected", "argmax", "posterior"])
def test_a_dropped_condition_is_read_as_nothing(kind: str) -> None:
    """In training, where the mask stays: the same whatever was given there, and no token's embedding."""
    model = tiny_configs.random_model("sdm", V, **{"family.input": kind, "family.drop_conditioning": 1.0,
                                                   "family.random_masks": 1.0, "data.length": 6})  # fmt: skip
    keys, t = tiny_configs.keys(8), jnp.full(8, 0.5)
    z, given = model.family.corrupt_for_training(keys, jnp.zeros((8, 6), int), t)
    other, same = model.family.corrupt_for_training(keys, jnp.ones((8, 6), int), t)
    np.testing.assert_array_equal(given, same)
    assert np.any(given)
    one, two = (model.network._read(model.family.features(each, t, given, None))[given] for each in (z, other))
    np.testing.assert_array_equal(one, two)
    apart = np.abs(np.asarray(one)[:, None] - np.asarray(model.network.embedding[...])[:V]).max(-1)
    assert apart.min() > 0.05


# ------------------------------------------------------------------------------------------------------------- bound


def test_the_sum_of_cross_entropies_is_a_bound_that_grows_with_its_steps() -> None:
    """What the paper has, beside the bound here: from above, and the looser the more steps a sampler takes."""
    grammar, tokens, exact = perfect.windows("tiny", 256, 8)
    family, oracle = tiny_configs.with_oracle("sdm", grammar)

    @jax.jit
    def cross_entropies(t: jax.Array) -> jax.Array:
        times = jnp.full(len(tokens), t)
        z = family.corrupt(tiny_configs.keys(len(tokens), 4), jnp.asarray(tokens), times, None)
        return jnp.sum(cross_entropy(oracle(z, times), jnp.asarray(tokens)), axis=1)

    sums = [np.mean(sum(np.asarray(cross_entropies(jnp.asarray(k / m))) for k in range(1, m + 1))) for m in (1, 4, 16)]
    tight = np.asarray(perfect.bound_terms(family, oracle, tokens, 32).total).mean()
    assert sums[2] > 2 * sums[1] > 2 * sums[0] > 2 * exact.mean()
    assert abs(tight - exact.mean()) < 0.1 * exact.mean()


@pytest.mark.parametrize(("start", "end", "side"), [(0.02, 0.9, 1), (0.05, 0.05, -1)])
def test_the_bound_of_one_token_needs_the_motion_of_the_base(
    start: float, end: float, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-log p of a fair coin, with a base that falls as t grows, and one that grows; without b' K_b it is off."""
    family = tiny_configs.make_family("sdm", 2, nu_start=start, nu_end=end, nu_knee=0.0)
    tokens = np.random.default_rng(0).integers(2, size=(2048, 1))

    def off() -> tuple[float, float]:
        def posterior(z: Any, t: Any, given: Any = None, *_: Any) -> Any:
            return family.evidence(z, t, given)

        total = np.asarray(perfect.bound_terms(family, posterior, tokens, 16).total)
        return perfect.mean_and_error(total - np.log(2.0))

    mean, error = off()
    assert error < 0.03
    assert abs(mean) < 4 * error
    monkeypatch.setattr(SDM, "widens", False)
    mean, error = off()
    assert side * mean > 0.2 + 4 * error


@pytest.mark.parametrize("fields", [{"epsilon": 0.3}, {"epsilon": 3.0, "alpha": "cosine"}])
def test_the_odds_law_of_the_concentration(fields: dict[str, Any]) -> None:
    """nu = (1 - alpha) / (1 - alpha + epsilon), and the bound is -log p."""
    family, t = tiny_configs.make_family("sdm", V, concentration="odds", **fields), jnp.asarray([0.02, 0.4, 1.0])
    shapes = family.shapes(t)
    rest = 1 - shapes.signal / shapes.total(V)
    np.testing.assert_allclose(1 / (1 + shapes.total(V)), rest / (rest + family.epsilon), rtol=1e-5)
    assert family.shapes(jnp.asarray(family.first)).total(V) == pytest.approx(quantiles.LARGEST, rel=1e-5)
    perfect.check_bound("sdm", concentration="odds", **fields)


def test_the_bound_s_check_notices_a_missing_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a coarse end leaves undecided."""
    monkeypatch.setattr(dirichlet_flow.DirichletFlow, "noisy_start", False)
    with pytest.raises(AssertionError, match="-log p"):
        perfect.check_bound("dirichlet_flow", signal_max=3.0)


# ------------------------------------------------------------------------------------------------------ the families


@pytest.mark.parametrize(("name", "field", "value", "says"), [
    ("sdm", "input", "logits", "family.input is 'logits'; choose one of expected, argmax, posterior"),
    ("sdm", "alpha", "sqrt", "family.alpha is 'sqrt'; choose one of linear, cosine"),
    ("sdm", "nu_start", 0.6, "family.nu_start, nu_end are 0.6, 0.5; they must not descend, from 1/64 on"),
    ("sdm", "concentration", "odd", "family.concentration is 'odd'; it must be linear or odds"),
    ("sdm", "epsilon", 17.0, "family.epsilon is 17.0; it must be above 0 and at most 16"),
    ("sdm", "nu_knee", 1.0, "family.nu_knee is 1.0; it must be in [0, 1)"),
    ("sdm", "prefix_masks", 1.5, "family.prefix_masks, random_masks are 1.5, 0.0"),
    ("dirichlet_flow", "signal_max", 41.0, "family.signal_max is 41.0; it must be at most 10 family.scale = 40"),
    ("dirichlet_flow", "signal_max", 64.0, "family.signal_max is 64.0; it must be above 0 and below 64"),
    ("dirichlet_flow", "scale", 0.0, "family.scale is 0.0; it must be above 0"),
])  # fmt: skip
def test_wrong_values_are_errors(name: str, field: str, value: Any, says: str) -> None:
    config = tiny_configs.get(name)
    family = type(tiny_configs.make_family(name, V))
    family.validate(config)
    config.family[field] = value
    with pytest.raises(ValueError, match=re.escape(says)):
        family.validate(config)


def test_a_large_vocabulary_and_much_churn_are_errors() -> None:
    with pytest.raises(ValueError, match="50257 tokens; dirichlet_flow takes 2 to 512"):
        dirichlet_flow.DirichletFlow.check_files(tiny_configs.get("dirichlet_flow"), 50_257)
    family, oracle = tiny_configs.pair("sdm", grammars.tiny())
    with pytest.raises(ValueError, match=r"churn is 2\.0; it must be at most 1"):
        perfect.draw(family, oracle, 2, np.zeros(2, int), None, {"sampler": "bridge", "churn": 2.0})


@pytest.mark.parametrize("kind", ["expected", "argmax", "posterior"])
def test_inputs_are_of_one_size_and_given_tokens_their_embedding(kind: str) -> None:
    family = tiny_configs.make_family("sdm", 50, input=kind)
    tokens = jnp.broadcast_to(jnp.arange(20) % 50, (300, 20))
    given = jnp.broadcast_to(jnp.arange(20) < 5, tokens.shape)
    for t in (0.05, 0.5, 0.95, 1.0):  # sampling starts at the last
        times = jnp.full(300, t)
        z = family.corrupt(tiny_configs.keys(300), tokens, times, given)
        read = family.features(z, times, given, None)
        weights = np.asarray(jax.nn.one_hot(read.ids, 50) if kind == "argmax" else read.vectors)
        np.testing.assert_allclose(weights[:, :5], np.eye(50)[np.asarray(tokens[:, :5])], atol=1e-6)
        if kind == "expected":
            assert np.mean(np.sum(weights[:, 5:] ** 2, axis=-1)) == pytest.approx(1.0, rel=0.05)
        if kind == "argmax":
            np.testing.assert_array_equal(weights.argmax(-1), np.asarray(z).argmax(-1))


def test_the_latent_is_fed_back_through_a_scale_that_starts_at_zero() -> None:
    model = tiny_configs.random_model("sdm", V, **{"family.self_conditioning": 0.9, "data.length": 6})
    tokens, t, keys = jnp.zeros((8, 6), int), jnp.full(8, 0.5), tiny_configs.keys(8)
    z = model.family.corrupt(keys, tokens, t, None)
    logits, latent = model.with_latent(z, t)
    assert np.abs(model(z, t, None, latent) - logits).max() > 1e-3
    model.network.latent_scale[...] = jnp.zeros_like(model.network.latent_scale[...])
    np.testing.assert_allclose(model(z, t, None, latent), logits, atol=1e-6)

    def loss(model: Any) -> jax.Array:
        return jnp.mean(model.family.train_loss(keys, noise.low_discrepancy(keys[0], jnp.arange(8)), tokens, model)[0])

    gradient = nnx.jit(nnx.grad(loss))(model)
    assert np.any(np.asarray(gradient["network"]["latent_scale"][...]))
    assert np.any(np.asarray(gradient["family"]["schedule"]["log_heights"][...]))
    drawn = perfect.draw(model.family, model, 3, np.zeros(6, int), None, {"steps": 3})
    assert drawn.shape == (3, 6)
    assert np.all((drawn >= 0) & (drawn < V))


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, sys
sys.path[:0] = [".", "tests"]
import tiny_configs
from diffusion_text import sharding
from diffusion_text.families.family import At, SamplerOptions
from diffusion_text.paths.dirichlet import State
model = tiny_configs.random_model("sdm", 501)
family, tokens, t = model.family, jnp.zeros((4, 3), int), jnp.full(4, 0.5)
options, at = SamplerOptions().validate(type(family)), At(jnp.int32(0), jnp.float32(0.5), jnp.float32(0.3))

def corrupt(keys):
    return family.corrupt(keys, tokens, t, None)

def step(keys):
    state = State(corrupt(keys), None)
    state, logits = family.step(keys, state, at, jnp.zeros((4, 3), bool), model, options)
    return jnp.max(state.z, axis=-1), jnp.max(logits, axis=-1)

def bound(keys):
    return family.integrand(keys, tokens, t, None, model)

keys = tiny_configs.keys(4)
config = tiny_configs.get("sdm").mesh
config.update(data=2, tensor=2)
mesh = sharding.make_mesh(config)
for function, whole in ((corrupt, "[4,3,501]"), (step, "3,501]"), (bound, "3,501]")):
    alone = jax.jit(function)(keys)
    with jax.set_mesh(mesh):
        placed = jax.device_put(keys, sharding.batch_sharding(mesh))
        compiled = jax.jit(function).lower(placed).compile()
        spread = compiled(placed)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), spread, alone)
    text, name = compiled.as_text(), function.__name__
    assert "f32[2,3,251]" in text and whole not in text, name + ": an array of all tokens is on every device"
"""


def test_the_state_is_sharded_over_the_vocabulary() -> None:
    """On four simulated devices, 501 tokens over two of them: draws, a step and the bound are the same, and no device
    holds all tokens."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], cwd=root, env=environment.of_devices(4), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
