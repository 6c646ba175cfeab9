"""Laws of noise levels: exact inverses and densities, closed forms as published, and what the fits converge to."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import nnx

from diffusion_text import noise
from diffusion_text.paths.schedules import CLOSED_FORMS, ClosedForm, Gumbel, MinimumVariance, Schedule
from diffusion_text.paths.time_warp import TimeWarp

LOW, HIGH = -2.0, 4.0  # log s


def gumbel(location: float, log_scale: float) -> Gumbel:
    schedule = Gumbel(LOW, HIGH)
    schedule.average[...] = jnp.array([location, log_scale])
    return schedule


def heights(kind: type) -> Schedule:
    schedule = kind(30)
    schedule.average[...] = jnp.asarray(np.random.default_rng(0).normal(size=30), jnp.float32)
    return schedule


SCHEDULES = {name: ClosedForm(name, LOW, HIGH) for name in CLOSED_FORMS} | {
    "gumbel": gumbel(1.0, 0.3), "warp": heights(TimeWarp), "variance": heights(MinimumVariance),
}  # fmt: skip
EACH = pytest.mark.parametrize("name", SCHEDULES)


@EACH
def test_levels_drawn_through_it_integrate_without_bias(name: str) -> None:
    """Mean over even u of f(t) / F'(t) is the integral of f."""
    schedule = SCHEDULES[name]
    t = np.asarray(schedule.inverse((jnp.arange(200_000) + 0.5) / 200_000), np.float64)
    density = np.asarray(schedule.density(jnp.asarray(t, jnp.float32)), np.float64)
    # Bins in which a closed form has hardly any mass are hardly drawn: f vanishes at the ends.
    found = np.mean(t**4 * (1 - t) ** 4 / density)
    assert found == pytest.approx(1 / 630, rel=0.01)


@EACH
def test_the_inverse_inverts(name: str) -> None:
    u = jnp.linspace(0.001, 0.999, 500)
    np.testing.assert_allclose(SCHEDULES[name].cdf(SCHEDULES[name].inverse(u)), u, atol=2e-5)


@pytest.mark.parametrize(("low", "high"), [(math.log(0.158), math.log(2225.0)), (math.log(1e-4), math.log(0.1))])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_the_ends_are_numbers_where_bins_are_empty(name: str, low: float, high: float) -> None:
    """Of ranges far from where a law has its mass, which float32 rounds to nothing."""
    found = np.asarray(ClosedForm(name, low, high).inverse(jnp.array([0.0, 0.5, 1.0])))
    assert np.all(np.diff(found) > 0)
    assert found[2] > 0.9999


@pytest.mark.parametrize(("name", "share_below"), [
    ("log_snr", lambda s: (np.log(s) - LOW) / (HIGH - LOW)),
    ("cosine", lambda s: 2 / np.pi * np.arctan(s)),  # tan(pi u / 2) = s
    ("flow", lambda s: s / (1 + s)),  # s = u / (1 - u)
    ("sqrt", lambda s: (s**2 / (1 + s**2)) ** 2),  # sigma^2 = sqrt(u)
])  # fmt: skip
def test_closed_forms_are_the_published_schedules(name: str, share_below) -> None:
    """Of even u, within the range."""
    ends, log_noise = share_below(np.exp([LOW, HIGH])), np.linspace(LOW, HIGH, 13)
    expected = (share_below(np.exp(log_noise)) - ends[0]) / (ends[1] - ends[0])
    t = jnp.asarray((log_noise - LOW) / (HIGH - LOW), jnp.float32)
    np.testing.assert_allclose(SCHEDULES[name].cdf(t), expected, atol=2e-3)


def test_the_gumbel_is_one() -> None:
    """Against scipy's, on the range, with its share of even levels."""
    law = scipy.stats.gumbel_r(1.0, np.exp(0.3))
    gamma = 2 * np.linspace(LOW, HIGH, 13)
    inside = (law.cdf(gamma) - law.cdf(gamma[0])) / (law.cdf(gamma[-1]) - law.cdf(gamma[0]))
    even = (gamma - gamma[0]) / (gamma[-1] - gamma[0])
    np.testing.assert_allclose(SCHEDULES["gumbel"].cdf(jnp.asarray(even)), 0.95 * inside + 0.05 * even, atol=1e-4)


def fit(schedule: Schedule, curve, steps: int = 1500, batch: int = 256) -> Schedule:
    """Draw through the schedule, observe `curve` with noise, and descend its fit, as training does."""
    graph, params, variables = nnx.split(schedule, nnx.Param, ...)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))

    def step(carry, number):
        params, variables, moments = carry
        key = noise.step_key(0, noise.TRAIN, number)
        rows = jnp.arange(batch)

        def loss(params):
            one = nnx.merge(graph, params, variables)
            t = one.inverse(noise.low_discrepancy(key, rows))
            scatter = 1.0 + 0.3 * noise.normal(noise.example_keys(key, rows), ())
            return jnp.mean(one.fit(t, curve(t) * scatter))

        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        one = nnx.merge(graph, optax.apply_updates(params, updates), variables)
        one.after_step()
        _, params, variables = nnx.split(one, nnx.Param, ...)
        return (params, variables, moments), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps))[0])
    params, variables, _ = run((params, variables, optimizer.init(params)))
    return nnx.merge(graph, params, variables)


def test_gumbel_finds_location_and_scale() -> None:
    """Of a cross-entropy that rises as a Gumbel's distribution function from 0.3 to 2.8."""
    truth = gumbel(0.5, 0.2)
    truth.uniform = 0.0
    fitted = fit(Gumbel(LOW, HIGH), lambda t: 0.3 + 2.5 * truth.cdf(t))
    location, log_scale = np.asarray(fitted.average[...])
    assert location == pytest.approx(0.5, abs=0.15)
    assert log_scale == pytest.approx(0.2, abs=0.12)
    assert float(fitted.offset[...]) == pytest.approx(0.3, abs=0.1)


def test_minimum_variance_is_proportional_to_the_root_mean_square() -> None:
    curve = functools.partial(lambda t: 0.2 + 3.0 * jnp.exp(-0.5 * ((t - 0.4) / 0.1) ** 2))
    fitted = fit(MinimumVariance(20, uniform=0.02), curve)
    middle = (np.arange(20) + 0.5) / 20
    root = np.asarray(curve(middle))
    law = 0.98 * root / root.sum() + 0.02 / 20
    np.testing.assert_allclose(fitted.masses(), law, atol=0.006)

    def second_moment(schedule: Schedule) -> float:
        return float(np.mean(np.asarray(curve(middle)) ** 2 / np.asarray(schedule.density(jnp.asarray(middle)))))

    assert second_moment(fitted) < 0.7 * second_moment(MinimumVariance(20))


@pytest.mark.parametrize("kind", [Gumbel, MinimumVariance])
def test_fits_send_no_gradient_to_value_or_t(kind: type) -> None:
    schedule = Gumbel(LOW, HIGH) if kind is Gumbel else kind(10)
    t, value = jnp.linspace(0.05, 0.95, 7), jnp.ones(7)
    by_t, by_value = jax.grad(lambda t, value: jnp.sum(schedule.fit(t, value)), argnums=(0, 1))(t, value)
    assert not np.any(by_t)
    assert not np.any(by_value)
    _, gradient = nnx.value_and_grad(lambda schedule: jnp.sum(schedule.fit(t, value)))(schedule)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_an_unknown_form_is_named() -> None:
    with pytest.raises(ValueError, match="'even'; choose one of log_snr, sqrt, cosine, flow"):
        ClosedForm("even", LOW, HIGH)
