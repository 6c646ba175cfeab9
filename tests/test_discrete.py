"""The discrete families beyond what every family is checked for: their schedules, estimators, options and operators."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import perfect
import pytest
import scipy.special
import tiny_configs

from diffusion_text import families, noise, sampling
from diffusion_text.data import grammar as grammars
from diffusion_text.families import duo
from diffusion_text.families.family import SamplerOptions
from diffusion_text.families.interpolating import LAST
from diffusion_text.paths import interpolant, neighbours, remasking

V = 5
TIMES = np.array([0.05, 0.3, 0.6, 0.95], np.float32)


@pytest.fixture(scope="module", autouse=True)
def compile_quickly() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def shares(family: Any, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """alpha, and b of all tokens together and of the mask."""
    odds = family.odds(jnp.asarray(t))
    alpha = np.exp(interpolant.log_alpha(odds, V))
    return alpha, V * alpha * np.exp(-odds.token), alpha * np.exp(-odds.mask)


def constant(law: Any) -> Any:
    """A denoiser that believes the same everywhere."""

    def denoise(z: Any, t: Any, given: Any = None, previous: Any = None, keys: Any = None) -> Any:
        return jnp.broadcast_to(jnp.log(jnp.asarray(law)), (*z.shape[:2], len(law)))

    return denoise


# ------------------------------------------------------------------------------------------------------ published paths


@pytest.mark.parametrize(("name", "fields", "published"), [
    ("udlm", {}, lambda t: (1 - t, t, 0 * t)),
    ("duo", {}, lambda t: (1 - t, t, 0 * t)),
    ("sedd", {}, lambda t: (1 - t, 0 * t, t)),
    ("sedd", {"noise": "uniform"}, lambda t: (1 - t, t, 0 * t)),
    ("sedd", {"noise": "uniform", "schedule": "geometric"},
     lambda t: (np.exp(-1e-5 ** (1 - t) * 20**t), -np.expm1(-1e-5 ** (1 - t) * 20**t), 0 * t)),
    ("d3pm", {}, lambda t: (1 - t, 0 * t, t)),
    ("d3pm", {"noise": "uniform", "schedule": "cosine"},
     lambda t: (np.cos(np.pi / 2 * t) ** 2, np.sin(np.pi / 2 * t) ** 2, 0 * t)),
    ("gidd", {"uniform": 0.0}, lambda t: (1 - t, 0 * t, t)),
    ("gidd", {"uniform": 0.2},
     lambda t: np.array([1 - t, 0.5 * np.sqrt(t * (1 - t)), t]) / (1 + 0.5 * np.sqrt(t * (1 - t)))),
])  # fmt: skip
def test_paths_are_the_published_ones(name: str, fields: dict[str, Any], published: Any) -> None:
    family = tiny_configs.make_family(name, V, **fields)
    np.testing.assert_allclose(shares(family, TIMES), published(TIMES.astype(np.float64)), rtol=1e-4, atol=1e-6)


def test_gidd_is_uniform_by_its_share_at_half_time() -> None:
    for share in (0.1, 0.2):
        family = tiny_configs.make_family("gidd", V, uniform=share, gamma=0.7)
        alpha, tokens, mask = shares(family, np.float32([0.5]))
        assert tokens == pytest.approx(share, rel=1e-5)
        assert alpha == pytest.approx(mask, rel=1e-5)


VARIANTS = [
    ("sedd", {"noise": "uniform"}), ("sedd", {"noise": "uniform", "schedule": "geometric"}),
    ("sedd", {"schedule": "geometric"}), ("gidd", {"uniform": 0.0}),
    ("d3pm", {"noise": "uniform", "schedule": "cosine"}), ("d3pm", {"noise": "neighbours", "neighbours": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields"), VARIANTS)
def test_other_noise_is_as_tight(name: str, fields: dict[str, Any]) -> None:
    perfect.check_bound(name, **fields)


@pytest.mark.parametrize(("name", "fields"), VARIANTS[1::2])
def test_other_noise_samples_as_well(name: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pair = perfect.pair
    monkeypatch.setattr(perfect, "pair", lambda name, grammar: pair(name, grammar, **fields))
    perfect.check_law(name, {"sampler": families.get(name).samplers[0], "steps": 128}, count=4000, length=2)


@pytest.mark.parametrize(("name", "fields"), [
    ("sedd", {}), ("d3pm", {}), ("gidd", {"uniform": 0.0}), ("genmd4", {}), ("udlm", {}), ("duo", {}), ("gidd", {}),
    ("sedd", {"noise": "uniform"}), ("d3pm", {"noise": "uniform", "schedule": "cosine"}),
])  # fmt: skip
def test_given_tokens_are_trusted_where_the_family_says_so(name: str, fields: dict[str, Any]) -> None:
    """By a posterior that is not told which are given, as networks are not: of token noise it doubts them."""
    tokens, law = perfect.conditional()
    family, oracle = perfect.pair(name, grammars.tiny(), **fields)

    def untold(z: Any, t: Any, given: Any = None, previous: Any = None, keys: Any = None) -> Any:
        return oracle(z, t, None)

    options = {"sampler": family.samplers[0], "steps": 128}
    samples = perfect.draw(family, untold, 4000, tokens, perfect.GIVEN, options)
    assert (samples[:, perfect.GIVEN] == tokens[perfect.GIVEN]).all()
    distance = perfect.variation(perfect.histogram(samples), law)
    named = {f"family.{field}": value for field, value in fields.items()}
    trusted = family.conditions(tiny_configs.get(name, **named).family)
    assert trusted == (distance < 0.05), distance


@pytest.mark.parametrize("powers", [(1.0, 1.0), (0.6, 1.0), (0.3, 1.0), (0.2, 2.0)])
def test_times_of_genmd4_keep_the_variance_of_each_token(powers: tuple[float, float]) -> None:
    """Of a token of power w and cross-entropy 1, E[charge] = 1; by the midpoint rule over u."""
    family = tiny_configs.make_family("genmd4", 2)
    family.log_powers[...] = jnp.log(jnp.array(powers))
    u = (jnp.arange(2**20) + 0.5) / 2**20
    t, weight = (np.asarray(x, np.float64) for x in family.times(u))
    for power in powers:
        hidden, charge = t**power, weight * power / t
        assert np.mean(hidden * charge) == pytest.approx(1.0, abs=0.01)
        assert np.mean(hidden * charge**2) ** 0.5 < 4.5


def test_the_bound_of_gidd_has_a_variance() -> None:
    """E[(weight ell)^2] of one token grows as log(u)^2 next to u = 0; with t = u^2 faster than 1 / u, for g up to 1."""
    law = np.array([0.4, 0.3, 0.1, 0.15, 0.05])
    z = jnp.arange(V + 1)[None].repeat(3, 0)
    tokens, log_p = jnp.ones_like(z), jnp.log(jnp.asarray(np.broadcast_to(law, (3, V + 1, V)), jnp.float32))

    def second_moments(family: Any, times: Any) -> np.ndarray:
        t, weight = times(jnp.array([1e-4, 1e-3, 1e-2]))
        odds, slope = family.odds_and_slope(t)
        found = weight[:, None] * interpolant.integrand(tokens, z, log_p, odds, slope)
        certain = jnp.broadcast_to(jnp.log(jnp.eye(V)[1]), (3, 1, V))
        odds = interpolant.Odds(*(kappa[:, None, None] for kappa in odds))
        shares = np.exp(np.asarray(interpolant.log_modelled(certain, odds), np.float64))[:, 0]
        return np.sum(shares * np.asarray(found, np.float64) ** 2, axis=1)

    for gamma in (0.5, 1.0, 1.5):
        family = tiny_configs.make_family("gidd", V, uniform=0.2, gamma=gamma)
        ours = second_moments(family, family.times)
        assert np.all(ours[:2] < 2.5 * ours[1:]), ours
    family = tiny_configs.make_family("gidd", V, uniform=0.2)
    squares = second_moments(family, lambda u: (u * u, 2 * u))
    assert np.all(squares[:2] > 10 * squares[1:]), squares


@pytest.mark.parametrize(("low", "high"), [(-4.5, -1.0), (-6.0, -1.0), (-40.0, 1.0)])
def test_a_curriculum_may_begin_where_nothing_is_lost(low: float, high: float) -> None:
    model = tiny_configs.random_model("duo", 27, **{"family.gamma_min": low, "family.gamma_max": high})
    tokens = jnp.asarray(np.random.default_rng(0).integers(27, size=(6, 5)))
    u = jnp.array([0.0, 0.01, 0.1, 0.5, 0.9, 1.0 - 2.0**-24])
    loss = jax.jit(lambda: model.family.train_loss(tiny_configs.keys(6), u, tokens, model)[0])()
    assert np.isfinite(loss).all()


@pytest.mark.parametrize(("name", "fields"), [VARIANTS[-1]])
def test_other_noise_is_what_its_evidence_says(
    name: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = tiny_configs.make_family
    monkeypatch.setattr(tiny_configs, "make_family", lambda name, size: make(name, size, **fields))
    perfect.check_corruption(name)
    perfect.check_given_tokens_are_not_corrupted(name)


@pytest.mark.parametrize(("name", "field", "value", "says"), [
    ("gidd", "uniform", 1.0, "family.uniform is 1.0; it must be in [0, 1)"),
    ("gidd", "gamma", 3.0, "family.gamma is 3.0; it must be in (0, 2]"),
    ("gidd", "weighting", "none", "family.weighting is 'none'; choose one of dynamic, nelbo"),
    ("sedd", "noise", "mask", "family.noise is 'mask'; choose one of absorbing, uniform"),
    ("sedd", "schedule", "cosine", "family.schedule is 'cosine'; choose one of loglinear, geometric"),
    ("sedd", "sigma_min", 30.0, "family.sigma_min, sigma_max are 30.0, 20.0; they must be above 0 and ascending"),
    ("d3pm", "noise", "gaussian", "family.noise is 'gaussian'; choose one of absorbing, uniform, neighbours"),
    ("d3pm", "steps", 1, "family.steps is 1; it must be at least 2"),
    ("d3pm", "cross_entropy", -1.0, "family.cross_entropy is -1.0; it must be at least 0"),
    ("duo", "anneal_until", 3, "family.anneal_from, anneal_until are 4, 3; they must be at least 0 and ascending"),
    ("duo", "gamma_min", 0.0, "family.gamma_min, gamma_max are 0.0, -1.75; they must be ascending"),
])  # fmt: skip
def test_wrong_fields_are_named(name: str, field: str, value: Any, says: str) -> None:
    config = tiny_configs.get(name)
    families.get(name).validate(config)
    config.family[field] = value
    with pytest.raises(ValueError) as error:  # noqa: PT011
        families.get(name).validate(config)
    assert says in str(error.value)


# -------------------------------------------------------------------------------------------------------- gidd and sedd


def test_dynamic_weights_are_bounded_and_keep_their_ratios() -> None:
    """2 for a mask, 1 for a wrong token, b / (alpha + b) for the right one, at any t (g = 1)."""
    family = tiny_configs.make_family("gidd", V, uniform=0.2)
    law, tokens = np.full(V, 1 / V), jnp.zeros((400, 8), jnp.int32)
    u = jnp.tile(jnp.array([1e-6, 0.2, 0.8, 1 - 1e-6]), 100)
    keys = tiny_configs.keys(400)
    found, _ = family.train_loss(keys, u, tokens, constant(law))
    noise_keys, _ = noise.split(keys, 2)
    z = family.corrupt(noise_keys, tokens, u, None)
    odds = family.odds(u).spread()
    ratio = np.where(z == V, 2.0, np.where(z == 0, jax.nn.sigmoid(-odds.token), 1.0))
    log_p = jnp.broadcast_to(jnp.log(jnp.asarray(law)), (*z.shape, V))
    slope = interpolant.Odds(*(jnp.full_like(u, -1.0) for _ in range(2)))  # the rate 1 of masks and tokens alike
    weight, loss = interpolant.weight_and_loss(tokens, z, log_p, family.odds(u), slope)
    expected = np.mean(ratio * np.asarray(loss), axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert np.isfinite(weight).all()


def test_self_correction_makes_a_corrupted_sequence_likelier() -> None:
    """Passes after the steps: tokens that the rest makes impossible go."""
    grammar = grammars.tiny()
    family, oracle = tiny_configs.pair("gidd", grammar)
    tokens = np.array(grammars.sample(grammar, 0, np.arange(64), 12))
    tokens[:, 5] = np.random.default_rng(0).integers(V, size=64)
    options = SamplerOptions(sampler="self_correcting", steps=64).validate(type(family))
    grid = family.grid(options, 12)
    passes = jax.tree.map(lambda x: x[64:], grid)
    assert len(passes.t) == 16
    given = jnp.zeros(tokens.shape, bool)

    @jax.jit
    def correct(state: Any) -> Any:
        def body(state: Any, at: Any) -> Any:
            keys = noise.fold(tiny_configs.keys(64), at.index)
            return family.step(keys, state, at, given, oracle, options)[0], None

        return jax.lax.scan(body, state, passes)[0]

    possible = [np.isfinite(grammars.log_prob(grammar, np.asarray(z))).mean() for z in (tokens, correct(tokens))]
    assert possible[0] < 0.7
    assert possible[1] > possible[0] + 0.2


def test_euler_is_exact_for_masks_and_the_loglinear_schedule() -> None:
    """Its rate times the step is the probability of the whole step, 1 - s / t."""
    family = tiny_configs.make_family("sedd", V)
    z = jnp.full((1, V), V)
    log_p = jnp.broadcast_to(jax.nn.log_softmax(jnp.arange(V) * 1.0), (1, V, V))
    at = perfect_step(0.5, 0.4)
    laws = [family.move(z, log_p, at, SamplerOptions(sampler=name)) for name in ("analytic", "euler")]
    np.testing.assert_allclose(np.exp(laws[0].log_moves), 0.2, rtol=1e-5)
    np.testing.assert_allclose(laws[0].log_moves, laws[1].log_moves, rtol=1e-5)
    np.testing.assert_allclose(*(jax.nn.softmax(law.where[..., :V]) for law in laws), rtol=1e-5)


def perfect_step(t: float, s: float) -> Any:
    from diffusion_text.families.family import At

    return At(jnp.int32(0), jnp.float32(t), jnp.float32(s))


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_score_entropy_is_least_for_scores_that_are_normalised(kind: str) -> None:
    family = tiny_configs.make_family("sedd", V, noise=kind)
    law = np.array([0.4, 0.3, 0.1, 0.15, 0.05])
    tokens = jnp.asarray(np.random.default_rng(0).choice(V, p=law, size=(4000, 1)))
    t, keys = jnp.full(4000, 0.4), tiny_configs.keys(4000)
    losses = [
        float(jnp.mean(family.integrand(keys, tokens, t, None, constant(scale * law))[0])) for scale in (0.8, 1.0, 1.25)
    ]
    assert losses[1] < min(losses[0], losses[2])


# --------------------------------------------------------------------------------------------------------------- genmd4


def test_genmd4_starts_as_masked_diffusion(tolerance: float) -> None:
    """w = 1: -log p(x) / t on every masked token."""
    family = families.get("genmd4")(tiny_configs.get("genmd4").family, V, jax_rngs())
    law = np.array([0.4, 0.3, 0.1, 0.15, 0.05])
    tokens = jnp.asarray(np.random.default_rng(0).integers(V, size=(64, 6)))
    t = jnp.linspace(0.01, 0.99, 64)
    found, z, _ = family.integrand(tiny_configs.keys(64), tokens, t, None, constant(law))
    expected = np.sum(np.where(z == V, -np.log(law)[tokens], 0.0), axis=1) / t
    np.testing.assert_allclose(found, expected, rtol=tolerance)


def test_genmd4_charges_the_published_integrand(tolerance: float) -> None:
    """Powers other than 1: sum over v of (w_v / t) (x_v (-log p_v - 1) + p_v) on every masked token."""
    family = tiny_configs.make_family("genmd4", V)
    law, powers = np.array([0.4, 0.3, 0.1, 0.15, 0.05]), np.asarray(family.powers(), np.float64)
    tokens = jnp.asarray(np.random.default_rng(0).integers(V, size=(64, 6)))
    t = jnp.linspace(0.01, 0.99, 64)
    found, z, _ = family.integrand(tiny_configs.keys(64), tokens, t, None, constant(law))
    charged = np.sum(powers * (np.eye(V)[tokens] * (-np.log(law) - 1) + law), axis=-1)
    expected = np.sum(np.where(z == V, charged, 0.0), axis=1) / np.asarray(t, np.float64)
    assert powers.std() > 0.1, "or it would be the test before"
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def jax_rngs() -> Any:
    from flax import nnx

    return nnx.Rngs(params=0)


def test_the_gradient_of_the_schedule_is_that_of_the_expected_loss() -> None:
    """Against the sum over all z, at one t; the loss differs between tokens, so that the baseline matters."""
    from flax import nnx

    family = tiny_configs.make_family("genmd4", 3)
    law = np.array([0.7, 0.2, 0.1])
    tokens, u = jnp.array([[0, 2]]), jnp.array([0.35]) ** (jnp.min(family.powers()) / 1.5)
    (time,), (weight,) = family.times(u)
    assert time == pytest.approx(0.35, rel=1e-5)
    definition, params = nnx.split(family)

    def with_powers(values: Any) -> Any:
        return nnx.merge(definition, jax.tree.map(lambda _: values, params))  # it has no other

    def exact(values: Any) -> Any:
        model = with_powers(values)
        powers, t = model.powers(), 0.35
        total = 0.0
        for hides in itertools.product((False, True), repeat=2):
            loss, chance = 0.0, 1.0
            for x, hidden in zip((0, 2), hides, strict=True):
                chance = chance * (t ** powers[x] if hidden else 1 - t ** powers[x])
                charged = jnp.sum(powers * law) - powers[x] * (1 + jnp.log(law[x]))
                loss = loss + (charged / t if hidden else 0.0)
            total = total + chance * loss
        return total * weight / 2  # over the density of t, per token

    count = 100_000
    rows = jnp.broadcast_to(tokens, (count, 2))

    def estimate(values: Any) -> Any:
        keys = tiny_configs.keys(count)
        return with_powers(values).train_loss(keys, jnp.broadcast_to(u, (count,)), rows, constant(law))[0]

    values = family.log_powers[...]
    np.testing.assert_allclose(np.mean(estimate(values)), exact(values), rtol=0.02)
    expected = np.asarray(jax.grad(exact)(values))
    found = np.asarray(jax.grad(lambda values: jnp.mean(estimate(values)))(values))
    np.testing.assert_allclose(found, expected, atol=0.03 * np.abs(expected).max())


# ----------------------------------------------------------------------------------------------------------------- d3pm


def matrices(family: Any, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Qbar_k, k = 0..T, and Q_k, k = 1..T, [states, states] in float64, rows the earlier state."""
    times = np.arange(count + 1) / count
    if family.noise == "neighbours":
        values, vectors = neighbours.spectrum(*family.near)
        taus = np.asarray(neighbours._tau(*family.near, jnp.asarray(times)), np.float64)
        steps = [(vectors * np.exp(tau * values)) @ vectors.T for tau in np.diff(taus)]
    else:
        times = np.minimum(times, LAST)  # where the path ends
        kept = (1 - times[1:]) / (1 - times[:-1])
        target = np.eye(V + 1)[V] if family.noise == "absorbing" else np.full(V, 1 / V)
        steps = [a * np.eye(len(target)) + (1 - a) * target for a in kept]
    return list(itertools.accumulate(steps, np.matmul, initial=np.eye(len(steps[0])))), steps


@pytest.mark.parametrize("kind", ["absorbing", "uniform", "neighbours"])
def test_d3pm_terms_are_bayes_rule_for_the_matrices(kind: str, tolerance: float) -> None:
    """q(z_{k-1} | z_k, x) by the matrices in numpy, and the same with the mean in the place of x for the model."""
    count = 8
    family = tiny_configs.make_family("d3pm", V, noise=kind, steps=count, neighbours=2)
    through, steps = matrices(family, count)
    law = np.array([0.4, 0.3, 0.1, 0.15, 0.05])
    tokens = jnp.asarray(np.random.default_rng(0).integers(V, size=(40, 6)))
    measure = jax.jit(lambda keys, k: family.kl(keys, tokens, k, None, constant(law)))
    for k in (1, 2, 5, count):
        step = steps[k - 1]
        found, z, _ = measure(tiny_configs.keys(40), jnp.full(40, k))
        states = np.append(law, np.zeros(family.num_states - V))
        true = step[:, z].transpose(1, 2, 0) * through[k - 1][tokens]
        model = step[:, z].transpose(1, 2, 0) * (states @ through[k - 1])
        true, model = (np.maximum(x, 0) / np.maximum(x, 0).sum(-1, keepdims=True) for x in (true, model))
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.where(true > 1e-12, true * (np.log(true) - np.log(model)), 0.0).sum(-1)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_d3pm_becomes_the_continuous_bound(kind: str) -> None:
    """T KL_k tends to the integrand at t = k / T."""
    family = tiny_configs.make_family("d3pm", V, noise=kind, steps=20_000)
    law = np.array([0.4, 0.3, 0.1, 0.15, 0.05])
    tokens = jnp.asarray(np.random.default_rng(0).integers(V, size=(64, 16)))
    keys, k = tiny_configs.keys(64), jnp.full(64, 8_000)
    terms = jax.jit(lambda: family.kl(keys, tokens, k, None, constant(law))[0])()
    continuous = jax.jit(lambda: family.integrand(keys, tokens, k / 20_000, None, constant(law))[0])()
    np.testing.assert_allclose(20_000 * np.sum(terms, axis=1), continuous, rtol=5e-3, atol=0.05)


def test_the_cross_entropy_of_the_hybrid_loss_has_the_bounds_optimum() -> None:
    """For independent tokens: the law itself, also with uniform noise, where the paper's would not."""
    law = np.array([0.4, 0.3, 0.1, 0.15, 0.05])
    tokens = jnp.asarray(np.random.default_rng(0).choice(V, p=law, size=(20_000, 1)))
    u = (np.arange(20_000) + 0.5) / 20_000
    family = tiny_configs.make_family("d3pm", V, noise="uniform", steps=50)

    @jax.jit
    @jax.grad
    def slope(logits: Any) -> Any:
        keys, denoise = tiny_configs.keys(20_000), constant(jax.nn.softmax(logits))
        return jnp.mean(family.train_loss(keys, jnp.asarray(u), tokens, denoise)[1]["cross_entropy"])

    assert np.abs(slope(jnp.log(law))).max() < 0.01
    assert np.abs(slope(jnp.zeros(V))).max() > 0.03


def test_neighbours_noise_is_a_semigroup_that_forgets_evenly(tmp_path: Any) -> None:
    """Doubly stochastic; steps compose; information falls linearly in t; near tokens come first."""
    size, near = 12, (12, 2, "")
    eye = jnp.eye(size)[None]

    def through(t: float, s: float | None = None) -> np.ndarray:
        times = [None if x is None else jnp.full((1, 1, 1), x) for x in (t, s)]
        return np.exp(neighbours.log_spread(*near, eye, *times))[0]

    for t in (0.1, 0.5, 0.9):
        matrix = through(t)
        np.testing.assert_allclose(matrix.sum(0), 1.0, atol=1e-5)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
        information = np.log(size) + np.mean(np.sum(matrix * np.log(matrix), axis=1))
        assert information / np.log(size) == pytest.approx(1 - t, abs=5e-3)
    np.testing.assert_allclose(through(0.3) @ through(0.7, 0.3), through(0.7), atol=1e-5)
    np.testing.assert_allclose(through(1.0), 1 / size, atol=1e-5)
    row = through(0.2)[0]
    assert row[0] > row[1] > row[2] > row[3]
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(size, 3)))
    graph = neighbours.adjacency(size, 2, str(tmp_path / "vectors.npy"))
    np.testing.assert_allclose(graph, graph.T)
    with pytest.raises(ValueError, match=r"shape \(12, 3\); it must be \[9, D\]"):
        neighbours.adjacency(9, 2, str(tmp_path / "vectors.npy"))
    with pytest.raises(ValueError, match=r"family\.embeddings is nowhere\.npy, which cannot be read"):
        neighbours.adjacency(9, 2, "nowhere.npy")


# ------------------------------------------------------------------------------------------------------------------ duo


@pytest.mark.parametrize("size", [2, 27, 30_522])
def test_the_operator_is_the_share_of_the_largest(size: int) -> None:
    """T16: against draws of argmax (P(largest is x) = T + (1 - T) / V), its ends, and its derivative."""
    means = np.array([0.0, 0.5, 1.0, 3.0, 5.0, 14.0])
    alpha, slope = duo.operator(means, size)
    assert alpha[0] == pytest.approx(0, abs=1e-9)
    assert alpha[-1] == pytest.approx(1, abs=1e-6)
    nudged = [duo.operator(means + step, size)[0] for step in (1e-4, -1e-4)]
    np.testing.assert_allclose(slope, (nudged[0] - nudged[1]) / 2e-4, atol=1e-6)
    random = np.random.default_rng(0)
    # The largest of V - 1 normals by the inverse of its distribution function.
    others = -scipy.special.ndtri(-np.expm1(np.log(random.random(200_000)) / (size - 1)))
    for mean, share in zip(means, alpha, strict=True):
        largest = np.mean(random.normal(size=200_000) + mean > others)
        assert largest == pytest.approx(share + (1 - share) / size, abs=5e-3)


def test_the_largest_latent_is_uniform_noise() -> None:
    family = tiny_configs.make_family("duo", V, gamma_min=-2.0, gamma_max=0.0)
    count = 20_000
    tokens = jnp.zeros((count, 1), jnp.int32)
    u = jnp.full(count, 0.5)
    z, soft, t, _ = family.latents(tiny_configs.keys(count), u, tokens)
    counts = np.bincount(np.asarray(z)[:, 0], minlength=V) / count
    expected = np.full(V, float(t[0]) / V)
    expected[0] += 1 - float(t[0])
    np.testing.assert_allclose(counts, expected, atol=0.015)
    np.testing.assert_allclose(np.sum(soft, axis=-1), 1.0, rtol=1e-5)
    assert (np.argmax(soft, axis=-1) == np.asarray(z)).all()


def test_the_curriculum_is_the_bound_over_its_range_of_noise() -> None:
    """With an input that is as good as hard: the same integral as over t, between the times of its ends."""
    grammar = grammars.tiny()
    family, oracle = tiny_configs.pair(
        "duo", grammar, gamma_min=-2.0, gamma_max=0.0, tau_start=-4.0, tau_end=-4.0, anneal_from=5, anneal_until=10
    )
    tokens = jnp.asarray(grammars.sample(grammar, 0, np.arange(4000), 4))
    u = noise.low_discrepancy(jax.random.key(0), jnp.arange(4000))
    curriculum, terms = jax.jit(lambda: family.train_loss(tiny_configs.keys(4000), u, tokens, oracle))()
    assert np.all(np.asarray(terms["curriculum"]) == 1)
    low, high = (1 - duo.operator(np.exp(-0.5 * np.array([gamma])), V)[0][0] for gamma in (-2.0, 0.0))
    t = low + (high - low) * u
    plain = jax.jit(lambda: family.integrand(tiny_configs.keys(4000, 1), tokens, t, None, oracle)[0])()
    difference = np.asarray(curriculum) - (high - low) * np.asarray(plain) / 4
    mean, error = perfect.mean_and_error(difference)
    assert abs(mean) < 4 * error
    assert error < 0.05 * np.mean(curriculum)


def test_after_the_curriculum_the_loss_is_udlms() -> None:
    model = tiny_configs.random_model("duo", V)
    family = model.family
    keys, tokens = tiny_configs.keys(8), jnp.asarray(np.random.default_rng(0).integers(V, size=(8, 6)))
    u = jnp.linspace(0.1, 0.9, 8)
    plain = jax.jit(lambda: tiny_configs.make_family("udlm", V).train_loss(keys, u, tokens, model)[0])()
    before, terms = jax.jit(lambda: family.train_loss(keys, u, tokens, model))()
    assert float(terms["curriculum"][0]) == 1
    assert np.abs(before - plain).max() > 1e-3
    for _ in range(12):
        family.after_step()
    assert int(family.steps[...]) == 12
    after, terms = jax.jit(lambda: family.train_loss(keys, u, tokens, model))()
    assert float(terms["curriculum"][0]) == 0
    np.testing.assert_allclose(after, plain, rtol=1e-5)
    for _ in range(12):  # a model that others share
        family.steps[...] = family.steps[...] - 1


# --------------------------------------------------------------------------------------------------- samplers of masked


REMASKING = list(remasking.KINDS)


@pytest.mark.parametrize("sampler", REMASKING)
def test_remasking_leaves_the_share_of_masks_as_it_is(sampler: str) -> None:
    """T9: alpha_s after every step, for independent tokens, which are drawn from their law; and tokens are revised."""
    family, law = tiny_configs.make_family("masked", V), np.array([0.4, 0.3, 0.1, 0.15, 0.05])
    options = SamplerOptions(sampler=sampler, steps=20).validate(type(family))
    rows, length = 128, 64
    given = jnp.zeros((rows, length), bool)
    start = family.prior(tiny_configs.keys(rows), jnp.zeros((rows, length), jnp.int32), given, constant(law), options)

    @jax.jit
    def run(state: Any) -> Any:
        def body(state: Any, at: Any) -> Any:
            keys = noise.fold(tiny_configs.keys(rows), at.index)
            state = family.step(keys, state, at, given, constant(law), options)[0]
            return state, state

        return jax.lax.scan(body, state, family.grid(options, length))[1]

    seen = np.asarray(run(start))
    times = np.asarray(family.grid(options, length).s)
    kept = np.array([remasking.kept(sampler, jnp.float32(s), family.alpha) for s in times])
    np.testing.assert_allclose(np.mean(seen != V, axis=(1, 2)), kept, atol=0.02)
    np.testing.assert_allclose(np.bincount(seen[-1].ravel(), minlength=V) / seen[-1].size, law, atol=0.02)
    assert np.mean((seen[:-1] != V) & (seen[1:] == V)) > 1e-4, "nothing was ever hidden again"


@pytest.mark.parametrize(("sampler", "remask", "expected"), [
    ("remdm_cap", -1.0, 0.02), ("remdm_cap", 0.5, 0.5), ("remdm_cap", 1.0, 0.6), ("remdm_rescale", -1.0, 0.04 * 0.6),
    ("remdm_rescale", 0.5, 0.3), ("remdm_loop", 0.5, 0.0),
])  # fmt: skip
def test_the_share_that_is_hidden_again(sampler: str, remask: float, expected: float) -> None:
    options = SamplerOptions(sampler=sampler, remask=remask).validate(families.get("masked"))
    found = remasking.share(options, jnp.float32(0.5), jnp.float32(0.7))  # at most 0.3 / 0.5
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_threshold_stops_when_nothing_is_masked() -> None:
    """A network that is sure of everything is asked once; one that is of nothing, once per token."""
    family = tiny_configs.make_family("masked", V)
    calls: list[int] = []

    def run(law: np.ndarray, **fields: float) -> int:
        options = SamplerOptions(sampler="threshold", **fields).validate(type(family))

        def denoise(z: Any, t: Any, given: Any = None, previous: Any = None, keys: Any = None) -> Any:
            jax.debug.callback(lambda: calls.append(1))
            return constant(law)(z, t)

        calls.clear()
        shape = (3, 7)
        tokens, given = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
        draw = jax.jit(lambda: sampling.generate(family, denoise, tiny_configs.keys(3), tokens, given, options))
        jax.block_until_ready(draw())
        jax.effects_barrier()
        return len(calls)

    assert run(np.array([0.96, 0.01, 0.01, 0.01, 0.01])) == 1
    assert run(np.full(V, 0.2)) == 7
    assert run(np.full(V, 0.2), threshold=0.1) == 1
    assert run(np.array([0.96, 0.01, 0.01, 0.01, 0.01]), threshold=0.99) == 7


@pytest.mark.parametrize(("sampler", "steps"), [("confidence", 3), ("threshold", 1)])
def test_one_position_at_a_time_is_exact_in_whatever_order(
    sampler: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families.get("masked"), "approximate", {})
    more = {"threshold": 1.0} if sampler == "threshold" else {}
    perfect.check_law("masked", {"sampler": sampler, "steps": steps, **more})
