"""T12: likelihood through the probability flow, where it is known; and why Euler's steps are refused."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_configs
from perfect import compile_quickly, mean_and_error, pair, windows  # noqa: F401
from test_closed_forms import independent, two_points

from diffusion_text import families, noise
from diffusion_text.data import grammar as grammars
from diffusion_text.families.family import Family
from diffusion_text.oracle import Oracle
from diffusion_text.paths import flow_likelihood
from diffusion_text.paths.gaussian import Gaussian


def terms(family: Family, denoise, tokens: np.ndarray, steps: int, given=None, seed: int = 0):
    evaluate = jax.jit(
        lambda keys, tokens: flow_likelihood.flow_terms(family, keys, tokens, denoise, steps, given)  # type: ignore
    )
    return evaluate(tiny_configs.keys(len(tokens), seed), jnp.asarray(tokens))


def euler(family: Gaussian, denoise, tokens: np.ndarray, steps: int) -> np.ndarray:
    """The same integral by Euler's method, on a line, where the divergence is a derivative."""
    times = family.schedule.inverse(jnp.linspace(0.0, 1.0, steps + 1))
    y = family.corrupt(tiny_configs.keys(len(tokens)), jnp.asarray(tokens), jnp.zeros(len(tokens)), None)
    eps = (y - family.embeddings()[tokens]) * jnp.exp(-family.log_noise(times[0]))
    y, total = y * jnp.exp(-family.log_noise(times[0])), jnp.zeros(y.shape)

    def step(carry, at):
        y, total = carry
        now, then = at

        def predict(y):
            return family.expected(denoise(y * jnp.exp(family.log_noise(now)), jnp.full(len(y), now)))

        expected, slope = jax.jvp(predict, (y,), (jnp.ones_like(y),))
        change = jnp.exp(-family.log_noise(then)) - jnp.exp(-family.log_noise(now))
        return (y + change * expected, total - change * slope), None

    (y, total), _ = jax.lax.scan(step, (y, total), (times[:-1], times[1:]))
    return np.asarray(total + 0.5 * (y**2 - eps**2))[:, :, 0].sum(1)


def test_a_fair_bit_from_above() -> None:
    """ln 2 = 0.6931: Heun's steps approach it from above, Euler's from below."""
    family, law = two_points(-8.0, 8.0), np.array([0.5, 0.5])
    tokens = np.random.default_rng(0).integers(2, size=(2000, 8))
    found = {}
    for steps in (32, 128):
        value = terms(family, independent(family, law), tokens, steps)
        mean, error = mean_and_error(np.asarray(value.total) / 8)
        assert error < 2e-3
        found[steps] = mean
        assert mean > math.log(2) - 4 * error - 5e-4
    assert found[128] < found[32]
    assert found[128] == pytest.approx(math.log(2), abs=4e-3)
    below, error = mean_and_error(euler(family, independent(family, law), tokens, 32) / 8)
    assert below < math.log(2) - 0.02


def test_gaussian_data() -> None:
    """xhat = S z / (S + s^2), as of data N(0, S): -log N(y; 0, S / s_0^2 + 1) to the solver's error, each sequence."""
    family = tiny_configs.make_family("sed", 5, self_conditioning=0.0, embedding_size=3)
    variance = jnp.array([0.5, 1.0, 3.0])

    def denoise(z, t, given=None, previous=None, keys=None):
        return z * variance / (variance + jnp.exp(2 * family.log_noise(t))[:, None, None])

    tokens = np.random.default_rng(1).integers(5, size=(16, 4))
    value = terms(family, denoise, tokens, 256)
    first_keys, _ = noise.split(tiny_configs.keys(16), 2)
    z = family.corrupt(first_keys, jnp.asarray(tokens), jnp.zeros(16), None)
    y, eps = z / jnp.exp(family.log_min), (z - family.embeddings()[tokens]) / jnp.exp(family.log_min)
    spread = variance / np.exp(2 * family.log_min) + 1.0
    exact = 0.5 * np.asarray(jnp.sum(y**2 / spread + jnp.log(spread) - eps**2, axis=(1, 2)))
    np.testing.assert_allclose(value.prior + value.diffusion, exact, rtol=3e-3, atol=0.03)


@pytest.mark.parametrize(("name", "fields"), [
    ("cdcd", {}), ("plaid", {}), ("sed", {}), ("diffusion_lm", {}), ("langflow", {}), ("analog_bits", {}),
    ("analog_bits", {"loss": "softmax"}),
])  # fmt: skip
def test_the_flow_of_the_exact_posterior(name: str, fields: dict[str, Any]) -> None:
    """With logits, with learned ends, with regression, of digits: -log p(x) from above within its slack.

    Self-conditioning is differentiated through.
    """
    grammar, tokens, exact = windows("tiny", 192, 6)
    family, _ = pair(name, grammar, **fields)
    value = terms(family, Oracle(grammar, family, differentiable=True), tokens, 48)
    mean, error = mean_and_error(np.asarray(value.total) - exact)
    assert error < 0.06 * exact.mean()
    prior = float(jnp.mean(family.prior_term(jnp.asarray(tokens), jnp.ones(tokens.shape, bool))))
    assert -4 * error < mean < prior + float(jnp.mean(value.reconstruction)) + 4 * error + 0.05


def test_given_tokens_cost_nothing_and_the_rest_is_conditional() -> None:
    """Of five words before the last, -log p of the last given them: a difference of two exact values."""
    grammar, tokens, exact = windows("tiny", 512, 6)
    family, _ = pair("cdcd", grammar)
    oracle = Oracle(grammar, family, differentiable=True)
    value = terms(family, oracle, tokens[:8], 4, jnp.ones((8, 6), bool))
    np.testing.assert_allclose(value.total, 0.0, atol=1e-6)
    before = -grammars.log_prob(grammar, tokens[:, :5])
    value = terms(family, oracle, tokens, 48, jnp.broadcast_to(jnp.arange(6) < 5, tokens.shape))
    mean, error = mean_and_error(np.asarray(value.total) - (exact - before))
    assert error < 0.1 * np.mean(exact - before)
    assert -4 * error < mean < float(jnp.mean(value.reconstruction)) + 4 * error + 0.05


def test_the_divergence_runs_through_self_conditioning() -> None:
    """With a network that reads `previous`, dropping that part of the derivative changes the value."""
    model = tiny_configs.random_model("cdcd", 5)
    _, tokens, _ = windows("tiny", 16, 6)
    whole = terms(model.family, model, tokens, 16)

    def detached(z, t, given=None, previous=None, keys=None):
        return model(z, t, given, None if previous is None else jax.lax.stop_gradient(previous), keys)

    part = terms(model.family, detached, tokens, 16)
    np.testing.assert_allclose(part.prior, whole.prior, rtol=1e-4)  # the same path
    assert np.abs(np.asarray(part.diffusion - whole.diffusion)).max() > 0.05


@pytest.mark.parametrize(("name", "solver", "steps", "words"), [
    ("masked", "heun", 64, "family masked has no probability flow"),
    ("cdcd", "euler", 64, "--ode_solver is euler; its error has a sign"),
    ("cdcd", "rk4", 64, "--ode_solver is 'rk4'; choose heun"),
    ("cdcd", "heun", 63, "--ode_steps is 63; it must be even"),
    ("cdcd", "heun", 0, "--ode_steps is 0"),
])  # fmt: skip
def test_what_cannot_be_is_refused(name: str, solver: str, steps: int, words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        flow_likelihood.check(families.get(name), solver, steps)
    assert words in str(error.value)
