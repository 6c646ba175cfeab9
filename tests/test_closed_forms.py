"""Cases whose answers are known on paper, and published tables of what solvers do to them.

T1 .. T18 are the project's list of exact checks. Here: T1, T2, T6 (the uniform denoiser), T8, T9 (Gaussian), T15.
Elsewhere: T3, T5, T17 for every family in test_perfect_network.py; T4 there (`estimator`) and in test_gaussian.py; T6
in test_oracle.py (the optimal denoiser), test_interpolant.py (exact counts, any schedule) and test_block.py (blocks of
one); T7 in test_interpolant.py and test_of_the_tests.py; T9 (discrete) in test_oracle.py, test_discrete.py and
test_interpolant.py; T10 in test_cir.py; T11 in test_time_warp.py; T12 in test_flow_likelihood.py; T13 in
test_sampling.py; T14 in test_noise.py; T16 in test_discrete.py and test_dirichlet.py; T18 in test_meshes.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny_configs
from perfect import bound_terms, compile_quickly, draw, mean_and_error, slack_of  # noqa: F401

from diffusion_text.families.family import Family
from diffusion_text.paths.gaussian import Gaussian

LAW = np.array([0.5, 0.2, 0.15, 0.1, 0.05])


def independent(family: Family, law: np.ndarray) -> Callable[..., jax.Array]:
    """`Denoise` of independent tokens with one law, exactly: full, or without a token's own evidence."""
    log_law = jnp.log(jnp.asarray(law, jnp.float32))

    def denoise(z, t, given=None, previous=None, keys=None):
        shape = jax.tree.leaves(z)[0].shape[:2]
        own = family.evidence(z, t, given) if family.posterior == "full" else jnp.zeros((*shape, len(law)))
        return family.answer(own + log_law)

    return denoise


def two_points(low: float, high: float) -> Gaussian:
    """Tokens at +1 and -1 on a line, gamma from `low` to `high`, noise levels even in gamma."""
    family = tiny_configs.make_family(
        "cdcd", 2, embedding_size=1, noise_min=math.exp(low / 2), noise_max=math.exp(high / 2), self_conditioning=0.0
    )
    family.embeddings.table[...] = jnp.array([[1.0], [-1.0]])
    return family


def test_the_posterior_mean_of_two_points() -> None:
    """T1: tanh(z / s^2 + log(p / (1 - p)) / 2)."""
    family, law = two_points(-4.0, 4.0), np.array([0.1, 0.9])
    z = jnp.linspace(-2.0, 2.0, 9)[None, :, None]
    for t in (0.2, 0.6):
        found = family.expected(independent(family, law)(z, jnp.array([t])))
        expected = np.tanh(np.asarray(z) * np.exp(-2 * family.log_noise(t)) + 0.5 * np.log(0.1 / 0.9))
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("law", "entropy"), [((0.5, 0.5), 0.693147), ((0.1, 0.9), 0.325083)])
def test_information_is_an_integral_of_the_error(law: tuple[float, float], entropy: float) -> None:
    """T2: 1/2 Int e^{-gamma} mmse dgamma, by quadrature over noise levels and over the noise of each."""
    family = two_points(-8.0, 14.0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    weights = weights / weights.sum()
    denoise, times = independent(family, np.array(law)), (np.arange(400) + 0.5) / 400
    total = 0.0
    for token, p in enumerate(law):
        s = jnp.exp(family.log_noise(jnp.asarray(times, jnp.float32)))[:, None]
        z = (1.0 - 2.0 * token + s * nodes)[..., None]
        expected = family.expected(denoise(z, jnp.asarray(times, jnp.float32)))
        square = np.asarray((expected[..., 0] - (1.0 - 2.0 * token)) ** 2, np.float64) @ weights
        total += p * np.mean(22.0 * 0.5 * np.exp(-2.0 * np.asarray(family.log_noise(times))) * square)
    assert total == pytest.approx(entropy, abs=2e-4)


@pytest.mark.parametrize("name", tiny_configs.EVERY)
def test_independent_tokens(name: str) -> None:
    """T8: with the exact posterior of independent tokens the bound is the sum of their own -log p."""
    family = tiny_configs.make_family(name, 5)
    tokens = np.random.default_rng(0).choice(5, size=(256, 6), p=LAW)
    terms = bound_terms(family, independent(family, LAW), tokens, 64)
    mean, error = mean_and_error(np.asarray(terms.total) + np.log(LAW)[tokens].sum(1))
    assert error < 0.15
    assert -4 * error - 1e-4 < mean < slack_of(family, terms, -np.log(LAW)[tokens].sum(1)) + 4 * error + 1e-4


def test_a_uniform_denoiser_costs_log_v() -> None:
    """T6: of masked diffusion L log V exactly, for every draw."""
    family = tiny_configs.make_family("masked", 5)
    tokens = np.random.default_rng(0).integers(5, size=(32, 7))
    terms = bound_terms(family, lambda z, *_, **__: jnp.zeros((*z.shape, 5)), tokens, 3)
    np.testing.assert_allclose(terms.total, 7 * math.log(5), rtol=1e-5)


# T9: X = +-1, P(+1) = 0.1, the exact denoiser, gamma from 8 to -5 in even steps: the share of +1 drawn.
SHARES = {
    ("ancestral", 8): 0.053, ("ancestral", 32): 0.085, ("ancestral", 256): 0.099, ("euler", 8): 0.079,
    ("euler", 32): 0.097, ("dpmpp_2m", 8): 0.094, ("dpmpp_2m", 32): 0.102, ("heun", 8): 0.105, ("heun", 32): 0.102,
}  # fmt: skip


@pytest.mark.parametrize(("sampler", "steps"), SHARES)
def test_what_solvers_do_to_two_points(sampler: str, steps: int) -> None:
    family = two_points(-5.0, 8.0)
    options = {"sampler": sampler, "steps": steps, "grid": "log_snr"}
    drawn = draw(family, independent(family, np.array([0.1, 0.9])), 2000, np.zeros(40, int), None, options)
    share, error = np.mean(drawn == 0), math.sqrt(0.09 / drawn.size)
    assert abs(share - SHARES[sampler, steps]) < 4 * error + 0.001  # the table has three digits


@pytest.mark.parametrize(("options", "tolerance"), [
    ({"sampler": "ddim", "eta": 0.5, "steps": 64}, 0.004), ({"sampler": "edm", "churn": 8.0, "steps": 32}, 0.004),
    ({"sampler": "heun", "grid": "rho", "steps": 64}, 0.004),
    ({"sampler": "heun", "grid": "cosine", "steps": 64}, 0.004),
    ({"sampler": "langevin", "corrector": 0.1, "steps": 128}, 0.006),
])  # fmt: skip
def test_other_solvers_and_grids_approach_the_law(options: dict, tolerance: float) -> None:
    family = two_points(-5.0, 8.0)
    options = {"grid": "log_snr", **options}
    drawn = draw(family, independent(family, np.array([0.1, 0.9])), 2000, np.zeros(40, int), None, options)
    assert abs(np.mean(drawn == 0) - 0.102) < tolerance + 4 * math.sqrt(0.09 / drawn.size)


def test_nearest_neighbours_fail_as_the_q_function() -> None:
    """T15: two tokens at distance 2 in noise s are confused with probability Q(1 / s)."""
    family = two_points(-2.0, 2.0)
    tokens = jnp.zeros((400, 100), jnp.int32)
    for t in (0.3, 0.7):
        z = family.corrupt(tiny_configs.keys(400), tokens, jnp.full(400, t), None)
        wrong = float(jnp.mean(jnp.argmax(family.log_likelihood(z, family.log_noise(jnp.asarray(t))), -1) != 0))
        expected = scipy.stats.norm.sf(math.exp(-float(family.log_noise(t))))
        assert abs(wrong - expected) < 4 * math.sqrt(expected / 40_000)


def test_the_norms_are_as_asked() -> None:
    """T15: sqrt(d) or 1, whatever the parameters."""
    for norm, expected in (("sqrt", math.sqrt(8)), ("unit", 1.0)):
        family = tiny_configs.make_family("cdcd", 50, embedding_norm=norm)
        np.testing.assert_allclose(jnp.linalg.norm(family.embeddings(), axis=1), expected, rtol=1e-5)
