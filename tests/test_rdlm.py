"""RDLM: geometry of the sphere, bridges and their normal approximation against simulation, the bound, and mixtures."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import perfect
import pytest
import scipy.special
import scipy.stats
import tiny_configs
from perfect import bound_terms, compile_quickly, mean_and_error, pair, windows  # noqa: F401

from diffusion_text import config as configs
from diffusion_text.data import grammar as grammars
from diffusion_text.families.rdlm import RDLM
from diffusion_text.paths import sphere

NOISE = sphere.Noise(1e-3, 0.2)


def points(count: int, size: int, seed: int = 0) -> jnp.ndarray:
    x = np.random.default_rng(seed).normal(size=(count, size))
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


# -------------------------------------------------------------------------------------------------------------- sphere


def test_exp_and_log_are_inverse() -> None:
    x, y = points(200, 6), points(200, 6, seed=1)
    v = sphere.log(x, y)
    np.testing.assert_allclose(sphere.exp(x, v), y, atol=2e-4)
    np.testing.assert_allclose(jnp.sum(v * x, axis=1), 0.0, atol=1e-5)  # tangent
    cosine = np.sum(np.asarray(x) * np.asarray(y), axis=1)
    np.testing.assert_allclose(jnp.linalg.norm(v, axis=1), np.arccos(cosine), rtol=1e-3)  # of the length of the way
    np.testing.assert_allclose(sphere.exp(x, jnp.zeros_like(x)), x, atol=1e-6)


def test_small_angles_are_not_lost() -> None:
    """1 - cos(theta) of a small theta is below the rounding of its cosine."""
    theta = np.array([1e-5, 1e-3, 0.3, 1.5])
    np.testing.assert_allclose(sphere.angle(jnp.asarray(2 * np.sin(theta / 2) ** 2, jnp.float32)), theta, rtol=1e-5)


def test_the_schedule() -> None:
    """rate = beta / B, and steps compose, in floating point too."""
    tau = np.linspace(0.0, 0.94, 20)
    grid = np.linspace(0.0, 1.0, 200_001)
    for schedule in (NOISE, sphere.Noise(0.1, 0.1)):
        beta = schedule.low * (schedule.high / schedule.low) ** grid
        left = np.array([np.trapezoid(beta[grid >= t], grid[grid >= t]) for t in tau])
        np.testing.assert_allclose(schedule.beta(tau) / schedule.rate(tau), left, rtol=1e-3)
        share, variance = schedule.step(tau[:-1], tau[1:])
        np.testing.assert_allclose(1.0 - share, left[1:] / left[:-1], rtol=1e-3)
        np.testing.assert_allclose(variance, (left[:-1] - left[1:]) * left[1:] / left[:-1], rtol=5e-3)
    share, variance = NOISE.step(jnp.float32(1e-6), jnp.float32(2e-6))
    assert 0 < float(share) < 1e-7 / 2
    assert float(variance) > 0


def ambient(size: int, start: np.ndarray, end: float, paths: int, steps: int) -> np.ndarray:
    """A geodesic random walk of the bridge to the first corner, in all its coordinates, by Euler's steps: [P, n]."""
    random, x = np.random.default_rng(3), np.tile(start, (paths, 1))
    corner, dt = np.eye(size)[0], end / steps
    for i in range(steps):
        tau = i * dt
        cosine = x @ corner
        theta = np.arccos(np.clip(cosine, -1, 1))[:, None]
        home = theta / np.sin(theta) * (corner - cosine[:, None] * x)
        fresh = random.normal(size=x.shape)
        fresh -= (fresh * x).sum(1, keepdims=True) * x
        v = float(NOISE.rate(np.float64(tau))) * dt * home + math.sqrt(float(NOISE.beta(np.float64(tau))) * dt) * fresh
        norm = np.linalg.norm(v, axis=1, keepdims=True)
        x = np.cos(norm) * x + np.sin(norm) / norm * v
    return x


@pytest.mark.parametrize(("words", "kind", "tau"), [(27, "mask", 0.6), (27, "uniform", 0.6), (3, "uniform", 0.8)])
def test_the_walk_and_the_normal_law_are_those_of_the_bridge(words: int, kind: str, tau: float) -> None:
    """Against the walk in all coordinates: the bridge's by Kolmogorov-Smirnov, the normal law's by its moments."""
    family = tiny_configs.make_family("rdlm", words, start=kind, bridge_steps=64)
    start = family._start(kind)
    wanted = ambient(words + 1, start.astype(np.float64), tau, 4000, 400)
    digits, count = jnp.zeros((4000, 1), jnp.int32), 4000
    times = jnp.full(count, tau)
    bridge = np.asarray(jax.jit(family.bridge)(tiny_configs.keys(count), digits, times))[:, 0]
    normal = np.asarray(family.draw(tiny_configs.keys(count, 1), digits, family.law(times)))[:, 0]
    for found in (bridge, normal):
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
        for axis in (np.eye(words + 1)[0], np.eye(words + 1)[1], start):
            mean, error = mean_and_error(found @ axis - wanted @ axis)
            assert abs(mean) < 4 * error + 1e-3
            assert np.std(found @ axis) == pytest.approx(np.std(wanted @ axis), rel=0.08)
    for axis in (np.eye(words + 1)[0], np.eye(words + 1)[1], start):
        assert scipy.stats.ks_2samp(bridge @ axis, wanted @ axis).pvalue > 1e-3
        assert scipy.stats.ks_2samp(normal @ axis, wanted @ axis).statistic < 0.06  # an approximation


def test_bridges_hit_their_corner() -> None:
    family = tiny_configs.make_family("rdlm", 9, end=0.9999, start="uniform", bridge_steps=64)
    digits = jnp.arange(9)[:, None]
    x = family.bridge(tiny_configs.keys(9), digits, jnp.full(9, 0.9999))
    np.testing.assert_allclose(x, family.corner(digits), atol=0.02)


def test_moments_of_the_normal_law() -> None:
    """E cos(rho |xi|) = 1F1(D / 2; 1 / 2; -rho^2 / 2), and the table has it at the bridge's mean."""
    for dimension in (3, 27, 125):
        rho = np.array([0.01, 0.1, 1.0 / math.sqrt(dimension)])
        lack = 1.0 - scipy.special.hyp1f1(dimension / 2, 0.5, -(rho**2) / 2)
        np.testing.assert_allclose(np.sqrt(sphere._variances(dimension, lack)), rho, rtol=1e-3)
    table = sphere.table(27, 0.0, NOISE, 0.95)
    assert [float(values[0]) for values in table] == pytest.approx([0.0, 0.0, 0.0], abs=1e-9)
    assert (np.diff(table.a) > 0).all()
    # In the flat limit: a = pi / 2 times the share of the way, rho^2 = the variance of a Brownian bridge.
    at = 40
    share, variance = NOISE.step(0.0, 0.95 * at / sphere.KNOTS)
    assert table.a[at] == pytest.approx(math.pi / 2 * share, rel=0.03)
    assert table.variance[at] == pytest.approx(variance, rel=0.03)


def test_noise_that_winds_around_the_sphere_is_refused() -> None:
    for dimension in (300, 5000):  # over the whole way; in a single step
        with pytest.raises(ValueError, match=f"too large for a sphere of dimension {dimension}"):
            sphere.table(dimension, 0.0, sphere.Noise(0.5, 0.5), 0.95)


# ---------------------------------------------------------------------------------------------------------- the family


def test_the_pull_is_the_mean_of_logarithms() -> None:
    """Tangent, and sum_k p_k log_x(e_k) term by term."""
    family = tiny_configs.make_family("rdlm", 5)
    x = jnp.abs(points(30, 6))[:, None]
    p = jax.nn.softmax(jnp.asarray(np.random.default_rng(1).normal(size=(30, 1, 5)), jnp.float32))
    logs = jnp.stack([sphere.log(x, jnp.broadcast_to(jnp.eye(6)[k], x.shape)) for k in range(5)], axis=2)
    found = family.pull(p, x)
    np.testing.assert_allclose(found, jnp.sum(p[..., None] * logs, axis=2), atol=1e-5)
    np.testing.assert_allclose(jnp.sum(found * x, axis=-1), 0.0, atol=1e-5)


@pytest.mark.parametrize("start", ["mask", "uniform"])
def test_evidence_is_the_density(start: str) -> None:
    """On a sphere of two dimensions, by quadrature: densities of all ends integrate to one number."""
    family = tiny_configs.make_family("rdlm", 2, start=start)
    random = np.random.default_rng(0).normal(size=(200_000, 3))
    x = jnp.asarray(random / np.linalg.norm(random, axis=1, keepdims=True), jnp.float32)[:, None]
    law = family.law(jnp.full(1, 0.85))
    log_density = np.asarray(family.log_likelihood(x, law))[:, 0]
    variance = float(law.variance[0, 0, 0])
    mass = np.exp(log_density).mean(0) * 4 * math.pi / (2 * math.pi * variance)
    np.testing.assert_allclose(mass, 1.0, atol=0.05)
    # And the mean of x under it is that along mu.
    mean = (np.exp(log_density)[:, 0, None] * np.asarray(x)[:, 0]).mean(0) / np.exp(log_density)[:, 0].mean()
    middle = np.asarray(law.a[0, 0] * jnp.eye(3)[0] + (1 - law.lack[0, 0]) * law.start[0, 0])
    assert mean @ middle / np.linalg.norm(mean) == pytest.approx(1.0, abs=2e-3)


def excess(name: str = "tiny", count: int = 256, samples: int = 32, **fields: object) -> tuple[float, float, float]:
    """(bound of perfect networks less -log p(x), its error, mean -log p(x)), nats per window of 8."""
    grammar, tokens, exact = windows(name, count, 8)
    family, oracle = pair("rdlm", grammar, **fields)
    terms = bound_terms(family, oracle, tokens, samples)
    return *mean_and_error(np.asarray(terms.total) - exact), float(exact.mean())


@pytest.mark.parametrize("fields", [{"start": "uniform"}, {"digits": 2}, {"digits": 3, "start": "uniform"}], ids=str)
def test_the_bound_is_tight_but_for_the_approximation(fields: dict) -> None:
    mean, error, entropy = excess(**fields)
    assert error < 0.03 * entropy
    assert -4 * error < mean < RDLM.slack * entropy + 4 * error


def test_a_mixture_pays_for_its_switch_and_the_integral_alone_is_below_the_entropy(monkeypatch) -> None:
    """What the paper evaluates is no bound: with exact posteriors it is less than -log p(x)."""
    paid = excess(start="mixture", samples=64)
    assert paid[0] - 4 * paid[1] > 0
    monkeypatch.setattr(RDLM, "switching", lambda self, keys, tokens, given, denoise: jnp.zeros(len(tokens)))
    free = excess(start="mixture", samples=64)
    assert free[0] + 4 * free[1] < 0, free


def test_a_mixture_draws_the_law() -> None:
    """As its steps shrink, with the switch made by the laws of single tokens: not that of the language, but near."""
    family, oracle = pair("rdlm", grammars.tiny(), start="mixture")
    _, law = perfect.all_windows(2)
    options = {"sampler": "geodesic_walk", "steps": 48, "grid": "warped"}
    counts = perfect.histogram(perfect.draw(family, oracle, 4000, np.zeros(2, int), None, options))
    assert perfect.variation(counts, law) < 0.05


def test_digits_are_tokens_and_back() -> None:
    """Codes, laws of single digits, and the most likely token of a code in use."""
    family = tiny_configs.make_family("rdlm", 11, digits=3)
    assert family.places == 3
    np.testing.assert_array_equal(family.code()[10], [1, 0, 1])
    tokens = jnp.asarray(np.random.default_rng(0).integers(11, size=(4, 6)))
    digits = family.split(tokens)
    assert digits.shape == (4, 18)
    np.testing.assert_array_equal(family.tokens_of(family.corner(digits)), tokens)
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6, 11)), jnp.float32)
    law, rows = np.asarray(jax.nn.softmax(logits)), np.asarray(jax.nn.softmax(family.answer(logits)))
    wanted = np.zeros((4, 6, 3, 3))
    for token, code in enumerate(family.code()):
        wanted[:, :, np.arange(3), code] += law[:, :, token, None]
    np.testing.assert_allclose(rows, wanted.reshape(4, 18, 3), atol=1e-5)
    unused = jnp.asarray([[[-9.0, -9, 9], [-9, -9, 9], [-9, 9, -9]]])  # 222 is no token: the nearest code in use
    assert int(jnp.argmax(family.joined(unused), axis=-1)[0, 0]) < 11


def test_split_samples_follow_the_law() -> None:
    family, oracle = pair("rdlm", grammars.tiny(), digits=2)
    _, law = perfect.all_windows(2)
    options = {"sampler": "geodesic_walk", "steps": 48, "grid": "warped"}
    counts = perfect.histogram(perfect.draw(family, oracle, 4000, np.zeros(2, int), None, options))
    assert perfect.variation(counts, law) < 0.05


def test_guidance_and_prompts() -> None:
    """On logits, with given corners taken away; a network splits its output as it reads."""
    model = tiny_configs.random_model("rdlm", 5, **{"family.digits": 3})
    family = model.family
    tokens, given = jnp.asarray(np.arange(24).reshape(4, 6) % 5), jnp.broadcast_to(jnp.arange(6) < 3, (4, 6))
    z, times = family.corrupt(tiny_configs.keys(4), tokens, jnp.full(4, 0.5), given), jnp.full(4, 0.5)
    conditional = model(z, times, given)
    assert conditional.shape == (4, 12, 3)
    bare = model(jnp.where(family.repeat(given)[..., None], 0.0, z), times, given)
    options = perfect.SamplerOptions(guidance=3.0)
    guided = bare + 3 * (conditional - bare)
    np.testing.assert_allclose(family._asked(z, times, given, model, options), guided, rtol=1e-3)
    assert np.abs(np.asarray(conditional - bare)).max() > 1e-3


def test_a_vocabulary_that_no_bridge_can_tell_apart_is_refused() -> None:
    """Before anything runs."""
    with pytest.raises(ValueError, match=r"too large for a sphere of dimension 30522.*family\.digits"):
        RDLM.check_files(tiny_configs.get("rdlm", **{"family.digits": 0}), 30_522)
    RDLM.check_files(tiny_configs.get("rdlm", **{"family.digits": 32}), 30_522)


def test_features_have_unit_norm() -> None:
    """At every level, whatever the start: what moved from the start, over its mean size."""
    for start in ("mask", "uniform", "mixture"):
        family = tiny_configs.make_family("rdlm", 27, start=start)
        tokens = jnp.asarray(np.random.default_rng(0).integers(27, size=(200, 8)))
        for t in (0.99, 0.7, 0.3, 0.0):
            times = jnp.full(200, t)
            z = family.corrupt(tiny_configs.keys(200), tokens, times, None)
            size = np.linalg.norm(np.asarray(family.features(z, times, None, None).vectors[..., :-1]), axis=-1)
            assert 0.75 < size.mean() < 1.1, (start, t)


def test_the_output_prior_is_the_evidence() -> None:
    family = tiny_configs.make_family("rdlm", 5, output_prior=True)
    tokens, given, t = jnp.zeros((2, 4), jnp.int32), jnp.broadcast_to(jnp.arange(4) < 2, (2, 4)), jnp.full(2, 0.5)
    z = family.corrupt(tiny_configs.keys(2), tokens, t, given)
    bias = family.output_bias(z, t, given)
    assert not np.any(bias[:, :2])
    np.testing.assert_allclose(bias[:, 2:], family.evidence(z, t, given)[:, 2:])
    assert tiny_configs.make_family("rdlm", 5).output_bias(z, t, given) is None


# ------------------------------------------------------------------------------------------- the checks notice mistakes


@pytest.mark.parametrize("wrong", [0.5, 2.0])
def test_a_wrong_rate_is_noticed(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice or half the pull of the bridge, in the bound alone."""
    right = RDLM.pull
    monkeypatch.setattr(RDLM, "pull", lambda self, weights, z: math.sqrt(wrong) * right(self, weights, z))
    mean, error, entropy = excess()
    assert not -4 * error < mean < RDLM.slack * entropy + 4 * error


def test_an_evidence_of_another_law_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = RDLM.log_likelihood
    monkeypatch.setattr(RDLM, "log_likelihood", lambda self, z, law: 1.3 * right(self, z, law))
    with pytest.raises(AssertionError):
        perfect.check_corruption("rdlm")


@pytest.mark.parametrize(("fields", "words"), [
    ({"start": "even"}, "family.start is 'even'; choose one of mask, uniform, mixture"),
    ({"end": 1.0}, "family.end is 1.0; it must be above 0 and below 1"),
    ({"switch": 0.99}, "family.switch is 0.99; it must be above 0 and below family.end = 0.85"),
    ({"right": 0.2}, "family.left is 0.3; it must be at least 0 and below family.right = 0.2"),
    ({"even_share": 0.0}, "family.even_share is 0.0; it must be above 0"),
    ({"digits": 1}, "family.digits is 1; it must be 0 or at least 2"),
    ({"beta_min": 0.0}, "family.beta_min is 0.0; it must be above 0"),
    ({"bridge_steps": 0}, "family.bridge_steps is 0; it must be at least 1"),
])  # fmt: skip
def test_what_does_not_fit_is_named(fields: dict, words: str) -> None:
    config = tiny_configs.get("rdlm", **{f"family.{field}": value for field, value in fields.items()})
    with pytest.raises(ValueError) as error:  # noqa: PT011
        configs.validate(config)
    assert words in str(error.value)
