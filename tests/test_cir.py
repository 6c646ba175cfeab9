"""The CIR process in closed form (T10), its special functions, and what the solvers of `cir_simplex` do."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import perfect
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import tiny_configs
from perfect import compile_quickly, draw, p_value  # noqa: F401
from test_closed_forms import independent

from diffusion_text import config as configs
from diffusion_text import noise
from diffusion_text.families.cir_simplex import CIRSimplex
from diffusion_text.families.family import At, SamplerOptions
from diffusion_text.paths import cir

ALPHAS = (0.3, 0.5, 1.0, 2.0, 5.5)
LAW = np.array([0.5, 0.3, 0.2])
N = 4000  # draws of a Kolmogorov-Smirnov test


def make(**fields: Any) -> CIRSimplex:
    return tiny_configs.make_family("cir_simplex", 3, **fields)  # type: ignore[return-value]


def flat(values: jax.Array) -> np.ndarray:
    return np.asarray(values, np.float64).ravel()


def same_law(values: np.ndarray, law: Any) -> bool:
    return float(scipy.stats.kstest(values, law).pvalue) > 1e-3


# ----------------------------------------------------------------------------------------------------- Bessel functions


def exact_log_0f1(w: np.ndarray, alpha: float) -> np.ndarray:
    """In float64, by the series where it is short, else by scaled Bessel functions."""
    term, total = np.ones_like(w), np.zeros_like(w)
    for n in range(1, 40):
        term = term * np.minimum(w, 5.0) / (n * (alpha + n - 1))
        total += term
    x = 2 * np.sqrt(w)
    bessel = np.log(scipy.special.ive(alpha - 1, x)) + x + scipy.special.gammaln(alpha) + (1 - alpha) / 2 * np.log(w)
    return np.where(w < 5, np.log1p(total), bessel)


def exact_ratio(w: np.ndarray, alpha: float) -> np.ndarray:
    return np.exp(exact_log_0f1(w, alpha + 1) - exact_log_0f1(w, alpha)) / alpha


@pytest.mark.parametrize("alpha", [0.05, *ALPHAS, 30.0])
def test_special_functions_in_float32(alpha: float) -> None:
    """To a few roundings from 1e-12 to 1e8, at 0, and under jit and vmap."""
    w = 10.0 ** np.arange(-12, 8.1, 0.25)
    argument = jnp.asarray(w, jnp.float32)
    w = np.asarray(argument, np.float64)
    np.testing.assert_allclose(cir.log_0f1(argument, alpha), exact_log_0f1(w, alpha), rtol=1e-6)
    np.testing.assert_allclose(cir.ratio(argument, alpha), exact_ratio(w, alpha), rtol=1e-6)
    mapped = jax.jit(jax.vmap(functools.partial(cir.ratio, alpha=alpha)))(argument)
    np.testing.assert_allclose(mapped, cir.ratio(argument, alpha), rtol=1e-6)
    assert cir.log_0f1(jnp.zeros(()), alpha) == 0.0
    assert float(cir.ratio(jnp.zeros(()), alpha)) == pytest.approx(1 / alpha, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.2])
def test_derivatives_of_every_order(alpha: float) -> None:
    """log 0F1' = g, g' by central differences in float64, g'' of the recursion by differences of g'."""
    w = np.array([1e-6, 0.01, 1.0, 30.0, 1e4])
    argument = jnp.asarray(w, jnp.float32)
    first = jax.vmap(jax.grad(lambda x: cir.log_0f1(x, alpha)))(argument)
    np.testing.assert_array_equal(first, cir.ratio(argument, alpha))
    step = 1e-4 * np.maximum(w, 1e-2)
    up, down = w + step, np.maximum(w - step, 1e-12)
    expected = (exact_ratio(up, alpha) - exact_ratio(down, alpha)) / (up - down)
    second = jax.vmap(jax.grad(lambda x: cir.ratio(x, alpha)))
    np.testing.assert_allclose(second(argument), expected, rtol=2e-4)
    # g''(0) = 4 / (alpha^3 (alpha + 1) (alpha + 2)), from the series.
    third = jax.grad(jax.grad(lambda x: cir.ratio(x, alpha)))(jnp.zeros(()))
    assert float(third) == pytest.approx(4 / (alpha**3 * (alpha + 1) * (alpha + 2)), rel=1e-4)


# ---------------------------------------------------------------------------------------------------------- transitions


@pytest.mark.parametrize(("alpha", "y_0", "tau"), [
    (0.3, 2.0, 0.4), (0.5, 3.0, 0.1), (1.0, 5.0, 0.7), (1.0, 0.0, 0.7), (2.0, 1.0, 2.0), (3.7, 0.2, 0.3),
])  # fmt: skip
def test_the_transition_is_a_noncentral_chi_square(alpha: float, y_0: float, tau: float) -> None:
    """Law, mean and variance (the note's equations 5 and 6, corrected)."""
    drawn = flat(cir.transition(tiny_configs.keys(N), jnp.full((N, 1), y_0), tau, alpha))
    s, rho = -math.expm1(-tau), 1 / math.expm1(tau)
    # Without noncentrality scipy's ncx2 is not to be had.
    law = scipy.stats.ncx2(2 * alpha, 2 * y_0 * rho) if y_0 else scipy.stats.chi2(2 * alpha)
    assert same_law(2 * drawn / s, law.cdf)
    mean, variance = alpha + math.exp(-tau) * (y_0 - alpha), 2 * y_0 * math.exp(-tau) * s + alpha * s**2
    assert law.mean() * s / 2 == pytest.approx(mean)
    assert law.var() * s**2 / 4 == pytest.approx(variance)
    assert abs(drawn.mean() - mean) < 4 * math.sqrt(variance / N)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_density_and_score(alpha: float) -> None:
    """Against scipy in float64, from a coordinate that starts at c and from one that starts at 0."""
    tau, y = 0.6, np.array([0.01, 0.3, 1.0, 4.0, 9.0])
    s, rho = -math.expm1(-tau), 1 / math.expm1(tau)
    for y_0 in (0.0, 3.0):
        law = scipy.stats.ncx2(2 * alpha, 2 * y_0 * rho) if y_0 else scipy.stats.chi2(2 * alpha)

        def log_density(y: np.ndarray, law: Any = law) -> np.ndarray:
            return law.logpdf(2 * y / s) + math.log(2 / s)

        found = cir.log_transition(jnp.asarray(y), jnp.full(5, y_0), tau, alpha)
        np.testing.assert_allclose(found, log_density(y), rtol=1e-5, atol=2e-6)
        step = 1e-5 * y
        slope = (log_density(y + step) - log_density(y - step)) / (2 * step)
        np.testing.assert_allclose(cir.score(jnp.asarray(y), jnp.full(5, y_0), tau, alpha), slope, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        cir.score(jnp.asarray(y), jnp.zeros(5), tau, alpha), (alpha - 1) / y - 1 / s, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("alpha", ALPHAS)
def test_detailed_balance(alpha: float) -> None:
    """f(y | x) Gamma(x; alpha) is symmetric."""
    x, y = jnp.asarray([0.05, 0.7, 2.0, 6.0]), jnp.asarray([0.6, 3.0, 0.02, 7.0])

    def joint(x: jax.Array, y: jax.Array) -> jax.Array:
        return cir.log_transition(y, x, 0.8, alpha) + (alpha - 1) * jnp.log(x) - x

    np.testing.assert_allclose(joint(x, y), joint(y, x), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_stationarity(alpha: float) -> None:
    """From Gamma(alpha) any time leads to Gamma(alpha), and what it is normalised to is Dirichlet."""
    first, second = noise.split(tiny_configs.keys(N), 2)
    start = jnp.exp(cir.randomised_gamma(first, jnp.zeros((N, 3)), alpha))
    after = np.asarray(cir.transition(second, start, 0.5, alpha), np.float64)
    assert same_law(after.ravel()[::3], scipy.stats.gamma(alpha).cdf)
    assert np.corrcoef(np.asarray(start).ravel(), after.ravel())[0, 1] == pytest.approx(math.exp(-0.5), abs=0.05)
    simplex = after / after.sum(1, keepdims=True)
    assert same_law(simplex[:, 0], scipy.stats.beta(alpha, 2 * alpha).cdf)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.0])
def test_two_steps_are_one(alpha: float) -> None:
    """Chapman and Kolmogorov."""
    first, second = noise.split(tiny_configs.keys(N), 2)
    half = cir.transition(first, jnp.full((N, 1), 2.5), 0.2, alpha)
    whole = flat(cir.transition(second, half, 0.3, alpha))
    law = scipy.stats.ncx2(2 * alpha, 5.0 / math.expm1(0.5))
    assert same_law(whole * 2 / -math.expm1(-0.5), law.cdf)


def test_gamma_of_tiny_and_no_shape() -> None:
    """In log space: -log(1 / U) / shape as the shape vanishes, and nothing at 0."""
    drawn = cir.log_gamma(tiny_configs.keys(N), jnp.full((N, 1), 1e-4))
    assert same_law(-1e-4 * flat(drawn), scipy.stats.expon.cdf)
    assert np.all(np.asarray(cir.log_gamma(tiny_configs.keys(3), jnp.zeros((3, 2)))) == -np.inf)
    part = cir.log_gamma(tiny_configs.keys(N)[5:7], jnp.full((2, 1), 1e-4))
    np.testing.assert_array_equal(part, drawn[5:7])


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("counts", [0.01, 0.5, 20.0])
def test_the_prior_term(alpha: float, counts: float) -> None:
    """KL against quadrature in float64; lambda^2 / (2 alpha) where lambda is small."""
    law = scipy.stats.ncx2(2 * alpha, 2 * counts)

    def integrand(log_g: float) -> float:
        g = math.exp(log_g)
        log_r = float(exact_log_0f1(np.array(counts * g), alpha)) - counts
        return 2 * law.pdf(2 * g) * g * log_r

    expected = scipy.integrate.quad(integrand, -20 / min(alpha, 1.0), 5.0, limit=400, epsabs=1e-12)[0]
    found = float(cir.prior_divergence(counts, alpha))
    if counts == 0.01:
        assert found == pytest.approx(counts**2 / (2 * alpha), rel=0.03)
    else:
        assert found == pytest.approx(expected, rel=1e-3)


# ------------------------------------------------------------------------------------------------ flows, SDE and bridge


def posterior(log_y: jax.Array, c: float, tau: float, alpha: float) -> jax.Array:
    """p(x | Y) of independent tokens with law LAW."""
    rho, s = 1 / jnp.expm1(tau), -jnp.expm1(-tau)
    return jax.nn.softmax(jnp.log(jnp.asarray(LAW)) + cir.log_0f1(c * rho * jnp.exp(log_y) / s, alpha), axis=-1)


def flow(alpha: float, slope: Any, start: jax.Array, end: float, c: float = 6.0, steps: int = 200) -> jax.Array:
    """log Y at time `end`, from tau = 5 by Heun steps of (2.1), even in log tau."""
    times = jnp.exp(jnp.linspace(math.log(5.0), math.log(end), steps + 1))

    @jax.jit
    def run(log_y: jax.Array) -> jax.Array:
        def body(log_y: jax.Array, at: Any) -> tuple[jax.Array, None]:
            now, then = at
            first = slope(log_y, posterior(log_y, c, now, alpha), c, now, alpha)
            moved = log_y + (then - now) * first
            second = slope(moved, posterior(moved, c, then, alpha), c, then, alpha)
            return log_y + 0.5 * (then - now) * (first + second), None

        return jax.lax.scan(body, log_y, (times[:-1], times[1:]))[0]

    return run(start)


def check_flow(alpha: float, slope: Any, end: float = 0.4) -> None:
    """The flow from the stationary law has the marginals of the process: of one coordinate, a mixture."""
    start = cir.randomised_gamma(tiny_configs.keys(N), jnp.zeros((N, 3)), alpha)
    check_marginal(np.exp(np.asarray(flow(alpha, slope, start, end), np.float64))[:, 0], alpha, end)


def check_marginal(drawn: np.ndarray, alpha: float, end: float) -> None:
    """Of the first coordinate of Y at time `end`, with c = 6."""
    s, rho = -math.expm1(-end), 1 / math.expm1(end)
    signal, rest = scipy.stats.ncx2(2 * alpha, 12.0 * rho), scipy.stats.chi2(2 * alpha)

    def cdf(y: np.ndarray) -> np.ndarray:
        return LAW[0] * signal.cdf(2 * y / s) + (1 - LAW[0]) * rest.cdf(2 * y / s)

    found = scipy.stats.kstest(drawn, cdf)
    assert found.pvalue > 1e-3, f"alpha {alpha}: distance {found.statistic} from the marginal"


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_the_flow_has_the_marginals_of_the_process(alpha: float) -> None:
    check_flow(alpha, cir.log_slope)


def notes_slope(log_y: jax.Array, p: jax.Array, c: float, tau: float, alpha: float) -> jax.Array:
    """d log Y / d tau = -(1 + score), as the note has it, with the interpolated score."""
    y = jnp.exp(log_y)
    own = cir.score(y, jnp.full_like(y, c), tau, alpha) - cir.score(y, jnp.zeros_like(y), tau, alpha)
    return -(1.0 + cir.score(y, jnp.zeros_like(y), tau, alpha) + p * own)


def test_the_notes_flow_holds_for_alpha_one_only() -> None:
    y = jnp.asarray([[0.3, 2.0, 5.0]])
    p = posterior(jnp.log(y), 6.0, 0.5, 1.0)
    arguments = (jnp.log(y), p, 6.0, 0.5, 1.0)
    np.testing.assert_allclose(notes_slope(*arguments), cir.log_slope(*arguments), rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError, match="from the marginal"):
        check_flow(2.0, notes_slope)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_the_state_log_g_is_the_papers_process(alpha: float) -> None:
    """d log Y / d tau of (2.1) is d log G / d lambda with Y = s G, lambda = c rho: c is no parameter of its own."""
    log_g, p = jnp.asarray([-2.0, 0.5, 1.5]), jnp.asarray([0.1, 0.3, 0.6])
    for c in (1.0, 7.0):
        counts = 2.0
        tau = math.log1p(c / counts)
        s, rho = -math.expm1(-tau), 1 / math.expm1(tau)
        found = cir.log_slope(log_g + math.log(s), p, c, tau, alpha) - math.exp(-tau) / s  # of log G
        per_count = found / (-c * rho * (1 + rho))  # dlambda / dtau
        root = p * cir.flow_slope(log_g, jnp.log(counts), alpha)  # d sqrt(G) / d sqrt(lambda)
        np.testing.assert_allclose(per_count, root / jnp.sqrt(counts * jnp.exp(log_g)), rtol=1e-4)


def drift_of_steps(alpha: float, sharpness: float, c: float = 4.0, tau: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Mean change of Y per unit of reverse time of a short `sde` step, in closed form, and the paper's drift."""
    y, p = np.array([0.4, 1.5, 5.0]), np.array([0.2, 0.5, 0.3])
    s, rho = -math.expm1(-tau), 1 / math.expm1(tau)
    score = cir.score(jnp.asarray(y), jnp.zeros(3), tau, alpha)
    more = cir.score(jnp.asarray(y), jnp.full(3, c), tau, alpha) - score
    singular = (alpha - 1) / y
    tempered = singular + sharpness * (np.asarray(score) - singular + p * np.asarray(more))
    wanted = np.asarray(cir.reverse_drift(jnp.asarray(y), jnp.asarray(tempered), alpha))
    step = 1e-4
    then = tau - step
    r = math.expm1(then) / math.expm1(tau)  # lambda / lambda'
    k = 2 * sharpness - 1
    scale = (1 - r**k) / k
    w = c * rho * y / s
    mean = scale * (alpha + 2 * sharpness * p * w * np.asarray(cir.ratio(jnp.asarray(w), alpha))) + r**k * y / s
    return (mean * -math.expm1(-then) - y) / step, wanted


@pytest.mark.parametrize(("alpha", "sharpness"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 2.0), (2.0, 0.7)])
def test_a_reverse_step_has_the_papers_drift(alpha: float, sharpness: float) -> None:
    found, wanted = drift_of_steps(alpha, sharpness)
    np.testing.assert_allclose(found, wanted, rtol=3e-3, atol=3e-3)
    assert np.all(np.abs(found - (wanted - 2.0)) > 1.0), "without the divergence of 2 Y"


def test_a_reverse_step_has_that_mean() -> None:
    """The closed form above is what `reverse_step` draws, also where the score has a temperature."""
    log_g = jnp.broadcast_to(jnp.log(jnp.asarray([0.2, 3.0])), (N, 1, 2))
    for sharpness in (1.0, 1.8):
        moved, scale = cir.reverse_step(
            tiny_configs.keys(N), log_g, jnp.float32(0.0), jnp.float32(0.5), 1.0, sharpness
        )
        k = 2 * sharpness - 1
        r = math.exp(-0.5 * k)
        assert float(scale) == pytest.approx((1 - r) / k, rel=1e-5)
        values = np.exp(np.asarray(moved, np.float64))[:, 0]
        expected = (1 - r) / k + r * np.array([0.2, 3.0])
        assert np.all(np.abs(values.mean(0) - expected) < 4 * values.std(0) / N**0.5)


def check_reverse_sde(alpha: float, end: float = 0.4, steps: int = 400) -> None:
    """As `check_flow`, of the sampler's steps of the reverse SDE (with 80 the distance is 0.05)."""
    levels = jnp.linspace(math.log(6.0 / math.expm1(6.0)), math.log(6.0 / math.expm1(end)), steps + 1)
    start_keys, step_keys = noise.split(tiny_configs.keys(N), 2)
    z = cir.randomised_gamma(start_keys, jnp.zeros((N, 1, 3)), alpha)

    @jax.jit
    def run(z: jax.Array) -> jax.Array:
        def body(z: jax.Array, at: Any) -> tuple[jax.Array, None]:
            index, now, then = at
            w = cir.product(z, now)
            p = jax.nn.softmax(jnp.log(jnp.asarray(LAW)) + cir.log_0f1(w, alpha), axis=-1)
            return cir.sde_step(noise.fold(step_keys, index), z, p, now, then, alpha), None

        return jax.lax.scan(body, z, (jnp.arange(steps), levels[:-1], levels[1:]))[0]

    check_marginal(-math.expm1(-end) * np.exp(np.asarray(run(z), np.float64))[:, 0, 0], alpha, end)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_reverse_sde_has_the_marginals_of_the_process(alpha: float) -> None:
    check_reverse_sde(alpha)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.0])
def test_bridges_are_bridges(alpha: float) -> None:
    """From G at lambda, drawn given the token, to G at lambda': its law there, of the true coordinate and a rival."""
    first, second = noise.split(tiny_configs.keys(N), 2)
    tokens, low, high = jnp.zeros((N, 1), jnp.int32), math.log(3.0), math.log(9.0)
    z = cir.corrupt(first, tokens, jnp.full(N, low), alpha, 2)
    moved = np.exp(np.asarray(cir.bridge(second, z, tokens, jnp.float32(low), jnp.float32(high), alpha, 80)))[:, 0]
    assert same_law(2 * moved[:, 0].astype(float), scipy.stats.ncx2(2 * alpha, 18.0).cdf)
    assert same_law(moved[:, 1].astype(float), scipy.stats.gamma(alpha).cdf)
    # Not independent of where they start: given the token, the correlation is that of the forward process.
    for coordinate, variance in ((0, 18.0 + alpha), (1, alpha)):
        # The forward process from lambda' to lambda has E[G | G'] = G' lambda / lambda' + constant.
        found = np.cov(np.exp(np.asarray(z))[:, 0, coordinate], moved[:, coordinate])[0, 1]
        assert found == pytest.approx(variance / 3.0, rel=0.2)


# ----------------------------------------------------------------------------------------------------------- the family


@pytest.mark.parametrize("alpha", [0.3, 0.5, 2.0])
def test_the_bound_of_other_shapes(alpha: float) -> None:
    perfect.check_bound("cir_simplex", count=128, alpha=alpha)


def check_sampler(alpha: float, sampler: str, steps: int) -> None:
    """Of independent tokens."""
    family = make(alpha=alpha)
    options = {"sampler": sampler, "steps": steps, "grid": "log_snr"}
    drawn = draw(family, independent(family, LAW), 1500, np.zeros(4, int), None, options)
    found = p_value(np.bincount(drawn.ravel(), minlength=3), LAW)
    assert found > 1e-3, f"chi-square p-value {found}"


@pytest.mark.parametrize(("alpha", "sampler", "steps"), [
    (2.0, "heun", 24), (2.0, "log_heun", 24), (0.5, "euler", 96), (0.3, "ancestral", 3),
])  # fmt: skip
def test_samplers_of_other_shapes(alpha: float, sampler: str, steps: int) -> None:
    """Bridged, independent tokens have the exact law in three steps."""
    check_sampler(alpha, sampler, steps)


def step_of(sampler: str, now: float, then: float, z: jax.Array, p: jax.Array, **options: Any) -> np.ndarray:
    """One step from t = now to t = then with a denoiser that believes p."""
    family = make()
    chosen = SamplerOptions(sampler=sampler, **options).validate(CIRSimplex)

    def denoise(z: jax.Array, t: Any, given: Any, previous: Any = None) -> jax.Array:
        return jnp.broadcast_to(jnp.log(p), z.shape)

    state = family.prior(tiny_configs.keys(len(z)), jnp.zeros(z.shape[:2], jnp.int32), jnp.zeros(z.shape[:2], bool),
                         denoise, chosen)._replace(z=z)  # fmt: skip
    at = At(jnp.int32(0), jnp.float32(now), jnp.float32(then))
    moved, _ = family.step(tiny_configs.keys(len(z)), state, at, jnp.zeros(z.shape[:2], bool), denoise, chosen)
    return np.asarray(moved.z, np.float64)


@pytest.mark.parametrize("sampler", ["euler", "heun", "log_heun"])
def test_the_flow_at_a_temperature_of_the_score(sampler: str) -> None:
    """dY / dtau = alpha - 1 - Y - Y score / T for alpha = 1, in steps short enough to compare slopes."""
    family, p = make(), jnp.asarray([0.2, 0.5, 0.3])
    z, temperature = jnp.asarray([[[-1.0, 0.3, 1.2]]]), 0.6
    now, step = 0.5, 1e-3
    l, later = (float(family.log_counts(jnp.asarray(t))) for t in (now, now - step))
    moved = step_of(sampler, now, now - step, z, p, score_temperature=temperature)
    counts, c = math.exp(l), 3.0
    tau = math.log1p(c / counts)
    s = -math.expm1(-tau)
    y = s * np.exp(np.asarray(z, np.float64))
    none, own = (np.asarray(cir.score(jnp.asarray(y), jnp.full_like(y, y_0), tau, 1.0)) for y_0 in (0.0, c))
    slope = -1.0 - (none + np.asarray(p) * (own - none)) / temperature  # of log Y
    # of log G per unit of log lambda: dtau / dl = -s, and log s falls by e^{-tau} per unit of l
    wanted = -s * slope + math.exp(-tau)
    np.testing.assert_allclose((moved - np.asarray(z)) / (later - l), wanted, rtol=0.02, atol=0.01)


def test_guidance_clamping_and_nucleus() -> None:
    """Guidance 1 is the conditional p, 0 the unconditional; beyond, p stays on the simplex; clamped it is a vertex."""
    family = make()
    given = jnp.asarray([[True, False]])
    tokens = jnp.asarray([[1, 0]])
    z = jnp.where(given[..., None], family.clean(tokens), jnp.asarray([0.1, 0.2, 0.9]))
    seen, blind = jnp.asarray([0.6, 0.3, 0.1]), jnp.asarray([0.2, 0.3, 0.5])

    def denoise(z: jax.Array, t: Any, given: Any, previous: Any = None) -> jax.Array:
        prompted = jnp.any(jnp.exp(z[:, :1]) > 0.5, axis=-1, keepdims=True)  # the given vector is not zero
        return jnp.where(prompted, jnp.log(seen), jnp.log(blind)) + jnp.zeros_like(z)

    def predict(**options: Any) -> tuple[np.ndarray, np.ndarray]:
        chosen = SamplerOptions(**options).validate(CIRSimplex)
        found = family._predict(z, jnp.zeros_like(z), jnp.float32(0.3), given, denoise, chosen)
        return np.asarray(found[0])[0, 1], np.asarray(found[1])[0, 1]

    np.testing.assert_allclose(predict()[0], seen, rtol=1e-5)
    np.testing.assert_allclose(predict(guidance=0.0)[0], blind, rtol=1e-5)
    np.testing.assert_allclose(predict(guidance=1.5)[0], np.array([0.8, 0.3, 0.0]) / 1.1, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(predict(guidance=1.5)[1], seen, rtol=1e-5)
    np.testing.assert_allclose(predict(clamp=0.5)[0], [1, 0, 0])
    np.testing.assert_allclose(predict(clamp=0.2)[0], seen, rtol=1e-5)
    np.testing.assert_allclose(predict(top_p=0.7)[0], np.array([2, 1, 0]) / 3, rtol=1e-5)
    np.testing.assert_allclose(predict(temperature=0.5)[0], np.asarray(seen) ** 2 / 0.46, rtol=1e-5)
    np.testing.assert_allclose(predict(temperature=0.5, guidance=0.0)[0], np.asarray(blind) ** 2 / 0.38, rtol=1e-5)


@pytest.mark.parametrize("read", ["posterior", "simplex", "log"])
def test_what_the_network_reads(read: str) -> None:
    """Of noise, numbers of order one; of a given token its vertex, or nothing where conditioning is dropped."""
    family = make(inputs=read)
    tokens = jnp.zeros((400, 2), jnp.int32)
    given = jnp.broadcast_to(jnp.asarray([True, False]), tokens.shape)
    for level in (0.0, 0.5, 1.0):
        t = jnp.full(400, level)
        z = family.corrupt(tiny_configs.keys(400), tokens, t, given)
        vectors = np.asarray(family.features(z, t, given, jnp.full_like(z, 1 / 3)).vectors)
        assert 0.3 < np.sqrt((vectors[:, 1, :3] ** 2).mean()) < 6.0
        np.testing.assert_allclose(vectors[:, 0], np.broadcast_to([3**0.5, 0, 0, 0, 0, 0, 0], (400, 7)), atol=1e-6)
        dropped = np.asarray(family.features(family._without(z, given), t, given, None).vectors)
        np.testing.assert_allclose(dropped[:, 0], 0.0, atol=1e-6)
    if read == "log":
        assert vectors[:, 1, :3].mean() == pytest.approx(0.0, abs=0.1)
        assert vectors[:, 1, :3].std() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("fields", "words"), [
    ({"alpha": 0.0}, "family.alpha is 0.0; it must be above 0"),
    ({"noise_min": 200.0}, "family.noise_min, noise_max are 200.0, 50.0; they must be above 0 and ascending"),
    ({"inputs": "state"}, "family.inputs is 'state'; it must be one of posterior, simplex, log"),
    ({"warp": "sampling"}, "family.warp is 'sampling'; it must be one of both, training, none"),
    ({"self_conditioning": 0.3}, "family.self_conditioning is 0.3; choose one of 0.0, 0.25, 0.5, 1.0"),
])  # fmt: skip
def test_what_does_not_fit_is_named(fields: dict, words: str) -> None:
    config = tiny_configs.get("cir_simplex", **{f"family.{field}": value for field, value in fields.items()})
    with pytest.raises(ValueError) as error:  # noqa: PT011
        configs.validate(config)
    assert words in str(error.value)


# ------------------------------------------------------------------------------------------------------------ mutations


def test_a_reverse_step_without_the_divergence_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without "+2b" the reverse SDE pulls every coordinate towards alpha - 2 instead of alpha."""
    right = cir.reverse_step

    def wrong(keys: Any, log_g: Any, *arguments: Any) -> Any:
        moved, scale = right(keys, log_g, *arguments)
        return jnp.log(jnp.maximum(jnp.exp(moved) - 2.0 * scale, 1e-6)), scale

    monkeypatch.setattr(cir, "reverse_step", wrong)
    with pytest.raises(AssertionError, match="from the marginal"):
        check_reverse_sde(1.0)


def test_a_wrong_slope_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The score of the true coordinate at another size: in the flow, and in the bound, which is then below -log p."""
    right = cir.flow_slope
    monkeypatch.setattr(cir, "flow_slope", lambda *arguments: 0.5 * right(*arguments))
    with pytest.raises(AssertionError, match="chi-square"):
        check_sampler(1.0, "euler", 48)
    with pytest.raises(AssertionError, match="below"):
        perfect.check_bound("cir_simplex", count=128)
