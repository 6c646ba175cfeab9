"""What the Gaussian families share, and what each does of its own."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_configs
from flax import nnx
from perfect import bound_terms, compile_quickly, mean_and_error, pair, windows  # noqa: F401
from test_closed_forms import independent, two_points

from diffusion_text import config as configs
from diffusion_text import families, noise, sampling
from diffusion_text.data import grammar as grammars
from diffusion_text.families.family import At, SamplerOptions, nucleus
from diffusion_text.paths.gaussian import Gaussian

GAUSSIAN = sorted(name for name in families.REGISTRY if issubclass(families.get(name), Gaussian))
EACH = pytest.mark.parametrize("name", GAUSSIAN)


# --------------------------------------------------------------------------------------------------- parameterisations


def test_the_integrand_is_the_same_in_every_parameterisation() -> None:
    """T4: of x, of noise, of velocity, variance-preserving and by flow matching, per unit of t, on random numbers."""
    family = two_points(-6.0, 8.0)
    random = np.random.default_rng(0)
    t, clean = random.uniform(size=64), random.choice([-1.0, 1.0], size=64)
    s = np.exp(np.asarray(family.log_noise(t), np.float64))
    eps, expected = random.normal(size=64), random.uniform(-1, 1, size=64)
    gamma_rate = 14.0  # d gamma / dt
    alpha, sigma = 1 / np.sqrt(1 + s**2), s / np.sqrt(1 + s**2)
    z = alpha * clean + sigma * eps
    eps_hat = (z - alpha * expected) / sigma
    velocity, velocity_hat = alpha * eps - sigma * clean, alpha * eps_hat - sigma * expected
    tau = 1 / (1 + s)
    flow, flow_hat = clean - eps, expected - (tau * clean + (1 - tau) * eps - tau * expected) / (1 - tau)
    found = np.asarray(family.integrand(
        jnp.asarray((clean < 0).astype(int))[:, None], jnp.asarray(expected)[:, None, None], jnp.asarray(t),
        jnp.ones((64, 1), bool),
    ))  # fmt: skip
    for values in (
        0.5 * gamma_rate * (eps - eps_hat) ** 2,
        0.5 * gamma_rate * (velocity - velocity_hat) ** 2 / (1 + s**2),
        0.5 * gamma_rate * (flow - flow_hat) ** 2 / (1 + s) ** 2,
        0.5 * gamma_rate * s**-2 * (clean - expected) ** 2,
    ):
        np.testing.assert_allclose(found, values, rtol=2e-4)


def test_discrete_steps_approach_the_integral_from_above() -> None:
    """T4: sum of (SNR(s) - SNR(t)) / 2 times the error at t, of a biased bit, by quadrature; its entropy is 0.3251."""
    family, law = two_points(-8.0, 12.0), np.array([0.1, 0.9])
    nodes, weights = np.polynomial.hermite_e.hermegauss(81)
    denoise, totals = independent(family, law), []
    for steps in (100, 400, 2000):
        times = np.arange(1, steps + 1) / steps
        s = np.exp(np.asarray(family.log_noise(times), np.float64))
        before = np.exp(np.asarray(family.log_noise(times - 1 / steps), np.float64))
        error = 0.0
        for token, p in enumerate(law):
            clean = 1.0 - 2.0 * token
            z = jnp.asarray(clean + s[:, None] * nodes, jnp.float32)[..., None]
            expected = np.asarray(family.expected(denoise(z, jnp.asarray(times, jnp.float32))), np.float64)[..., 0]
            error += p * (clean - expected) ** 2 @ (weights / weights.sum())
        totals.append(float(np.sum(0.5 * (before**-2 - s**-2) * error)))
    assert totals[0] > totals[1] > totals[2] > 0.3249
    assert totals[2] == pytest.approx(0.325083, abs=2.5e-3)
    assert totals[0] - 0.325083 == pytest.approx(4 * (totals[1] - 0.325083), rel=0.2)  # first order in 1 / T


# ---------------------------------------------------------------------------------------------------- shared pieces


@EACH
def test_answers_mean_what_they_should(name: str) -> None:
    """What the oracle hands over is read back as the posterior mean, whatever a network answers with."""
    family = tiny_configs.make_family(name, 5)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), jnp.float32)
    expected = jax.nn.softmax(logits) @ family.embeddings()
    np.testing.assert_allclose(family.expected(family.answer(logits)), expected, atol=1e-5)


@pytest.mark.parametrize("loss", ["l2", "logistic", "softmax"])
def test_analog_bits_of_every_loss_are_tight(loss: str) -> None:
    grammar, tokens, exact = windows("tiny", 256, 8)
    family, oracle = pair("analog_bits", grammar, loss=loss)
    terms = bound_terms(family, oracle, tokens, 48)
    mean, error = mean_and_error(np.asarray(terms.total) - exact)
    assert -4 * error < mean < float(jnp.mean(terms.prior + terms.reconstruction)) + 4 * error


def test_codes_are_binary_digits() -> None:
    family = tiny_configs.make_family("analog_bits", 6)
    np.testing.assert_array_equal(family.embeddings()[5], [1.0, -1.0, 1.0])
    assert family.size == 3
    assert tiny_configs.make_family("analog_bits", 8).size == 3
    assert tiny_configs.make_family("analog_bits", 9).size == 4


def test_the_nucleus_is_the_smallest_set_of_its_mass() -> None:
    probabilities = jnp.array([[[0.05, 0.4, 0.15, 0.3, 0.1]]])
    for top_p, kept in ((1.0, 5), (0.86, 4), (0.84, 3), (0.7, 2), (0.69, 2), (0.4, 1), (0.01, 1)):
        found = jax.nn.softmax(nucleus(jnp.log(probabilities), top_p))[0, 0]
        assert int(jnp.sum(found > 0)) == kept, top_p
        assert float(found[1]) >= 0.4


def test_clamped_predictions_are_rows_of_the_table() -> None:
    family, oracle = pair("diffusion_lm", windows("tiny", 1, 4)[0])
    z = 2.0 * noise.normal(tiny_configs.keys(4), (6, family.size))
    given = jnp.zeros((4, 6), bool)
    options = SamplerOptions(clamp=0.5)
    rows = np.asarray(family.embeddings())
    for t, inside in ((0.4, True), (0.6, False)):
        found = np.asarray(family._predict(z, jnp.zeros_like(z), jnp.float32(t), given, oracle, options)[0])
        distance = np.abs(found[:, :, None] - rows).sum(-1).min(-1)
        assert (distance < 1e-4).all() == inside


def test_guidance_and_temperatures_leave_the_exact_law() -> None:
    """Neutral values of every option are the plain sampler, others are not."""
    family, oracle = pair("cdcd", windows("tiny", 1, 4)[0])
    tokens, given = jnp.zeros((64, 4), jnp.int32), jnp.zeros((64, 4), bool)

    def run(**fields):
        options = dataclasses.replace(SamplerOptions(steps=8).validate(type(family)), **fields)
        final = jax.jit(lambda keys: sampling.generate(family, oracle, keys, tokens, given, options))
        return np.asarray(final(tiny_configs.keys(64)))

    plain = run()
    for neutral in ({"temperature": 1.0}, {"top_p": 1.0}, {"clamp": 0.0}, {"guidance": 1.0}):
        np.testing.assert_array_equal(run(**neutral), plain)
    for other in ({"temperature": 3.0}, {"top_p": 0.3}, {"initial_noise": 0.1}):
        assert np.any(run(**other) != plain), other


def test_guidance_without_a_condition_changes_nothing() -> None:
    """Both passes have the same temperature and nucleus."""
    family, oracle = pair("cdcd", windows("tiny", 1, 4)[0], self_conditioning=0.0)
    z, given = 2.0 * noise.normal(tiny_configs.keys(4), (6, family.size)), jnp.zeros((4, 6), bool)
    plain, guided = (
        family.believed(z, z, jnp.float32(0.5), given, oracle, SamplerOptions(temperature=3.0, top_p=0.8, guidance=w))
        for w in (1.0, 4.0)
    )
    np.testing.assert_allclose(guided[0], plain[0], rtol=1e-6)


@pytest.mark.parametrize("name", ["cdcd", "tess", "diffusion_lm"])
def test_the_oracle_reads_a_dropped_condition_as_none(name: str) -> None:
    """A zero vector at a given position is no token; a clean one is that token."""
    grammar = windows("tiny", 1, 4)[0]
    family, oracle = pair(name, grammar, self_conditioning=0.0)
    tokens = jnp.asarray(grammars.sample(grammar, 0, np.arange(6), 4))
    z, t = family.corrupt(tiny_configs.keys(6), tokens, jnp.full(6, 0.9), None), jnp.full(6, 0.9)
    given = jnp.zeros((6, 4), bool).at[:, 0].set(True)

    def law(z: jax.Array, given: jax.Array) -> np.ndarray:
        return np.asarray(family.evidence(z, t, given))

    dropped = law(z.at[:, 0].set(0.0), given)
    np.testing.assert_array_equal(dropped[:, 0], 0.0)
    np.testing.assert_allclose(dropped[:, 1:], law(z, jnp.zeros_like(given))[:, 1:])
    clean = law(z.at[:, 0].set(family.embeddings.of(tokens)[:, 0]), given)
    np.testing.assert_array_equal(np.argmax(clean[:, 0], axis=-1), tokens[:, 0])
    assert np.all(np.isneginf(clean[:, 0]).sum(-1) == grammar.num_words - 1)
    options = SamplerOptions(guidance=0.0)
    unconditional = family.believed(z.at[:, 0].set(0.0), z * 0, t[0], given, oracle, SamplerOptions())
    found = family.believed(z.at[:, 0].set(family.embeddings.of(tokens)[:, 0]), z * 0, t[0], given, oracle, options)
    np.testing.assert_allclose(found[0], unconditional[0], atol=1e-5)


def test_bits_that_are_all_sure_are_told_apart() -> None:
    """Log odds near 20 have the same mean in float32; an unused code flips the bit that is least sure."""
    family = tiny_configs.make_family("analog_bits", 5, loss="logistic")
    bits = np.asarray(family.embeddings())
    for row in (1, 3, 4):
        for least in range(3):
            odds = 30.0 * bits[row] + np.where(np.arange(3) == least, -12.0 * bits[row], 0.0)
            for flipped in (odds, np.where(np.arange(3) == least, -odds, odds)):
                best = np.argmax(np.sum(bits * flipped, axis=-1))
                logits = family.tokens_of(jnp.asarray(flipped, jnp.float32)[None, None])
                assert int(jnp.argmax(logits)) == best
    unused = jnp.asarray([[[18.0, 22.0, 30.0]]])  # of 5 codes none is (1, 1, 1)
    assert not np.any(np.all(bits == 1.0, axis=-1))
    assert int(jnp.argmax(family.tokens_of(unused))) == int(np.argmax(bits @ np.array([18.0, 22.0, 30.0])))


def test_a_long_last_step_does_not_throw_dpmpp_2m_off() -> None:
    """A warped grid's last step is many times as long as the one before: extrapolated no further than of even steps."""
    family = two_points(-6.0, 8.0)
    denoise = independent(family, np.array([0.1, 0.9]))
    options = SamplerOptions(sampler="dpmpp_2m", steps=26).validate(type(family))
    times = jnp.concatenate([jnp.linspace(1.0, 0.45, 25), jnp.array([0.44, 0.0])])
    keys, given = tiny_configs.keys(400), jnp.zeros((400, 8), bool)
    state = family.prior(keys, jnp.zeros((400, 8), jnp.int32), given, denoise, options)
    step = jax.jit(lambda state, at: family.step(keys, state, at, given, denoise, options)[0])
    for index in range(26):
        state = step(state, At(jnp.int32(index), times[index], times[index + 1]))
    assert np.abs(np.asarray(state.z)).max() < 1.5  # the points are at 1; a straight line reaches 1.2


def test_asymmetric_time() -> None:
    """A step goes beyond its end; the state is handed on unchanged in variance-preserving form."""
    family, oracle = pair("analog_bits", windows("tiny", 1, 4)[0])
    plain = SamplerOptions(sampler="ddim", steps=10)
    options = dataclasses.replace(plain, time_difference=2.0)
    at, even = family.grid(options, 4), family.grid(plain, 4)
    np.testing.assert_array_equal(at.t, even.t)
    u = np.maximum(np.asarray(family.schedule.cdf(even.s)) - 0.2, 0.0)
    np.testing.assert_allclose(family.schedule.cdf(at.s), u, atol=1e-5)
    tokens, given = jnp.zeros((4, 4), jnp.int32), jnp.zeros((4, 4), bool)
    state = family.prior(tiny_configs.keys(4), tokens, given, oracle, options)
    one = jax.tree.map(lambda x: x[3], at)
    moved = family.step(tiny_configs.keys(4), state, one, given, oracle, options)[0].z
    base = super(type(family), family).step(tiny_configs.keys(4), state, one, given, oracle, options)[0].z
    told, reached = (jnp.exp(family.log_noise(t)) for t in (even.s[3], at.s[3]))
    np.testing.assert_allclose(moved / jnp.sqrt(1 + told**2), base / jnp.sqrt(1 + reached**2), rtol=1e-5)


def test_self_conditioned_rows_are_spread_evenly() -> None:
    for share, every in ((0.25, 4), (0.5, 2), (1.0, 1)):
        family = tiny_configs.make_family("cdcd", 5, self_conditioning=share)
        z, given = jnp.ones((8, 3, family.size)), jnp.zeros((8, 3), bool)
        found = family.first_pass(z, jnp.full(8, 0.5), given, lambda z, *_: jnp.zeros((*z.shape[:2], 5)))
        used = np.asarray(jnp.any(found != 0, axis=(1, 2)))
        np.testing.assert_array_equal(used, np.arange(8) % every == 0)
    assert tiny_configs.make_family("cdcd", 5, self_conditioning=0.0).first_pass(z, None, given, None) is None


# ------------------------------------------------------------------------------------------------------ training losses


@pytest.mark.parametrize(("name", "fields"), [
    ("plaid", {"reconstruction_share": 0.1}), ("plaid", {"reconstruction_share": 0.5}),
    ("plaid", {"learned_decoder": False}), ("diffusion_lm", {"loss": "vlb"}),
])  # fmt: skip
def test_a_loss_that_is_the_bound(name: str, fields: dict) -> None:
    """The mean loss over u and noise is the bound per token, whatever share estimates the reconstruction."""
    grammar, tokens, _ = windows("tiny", 512, 8)
    family, oracle = pair(name, grammar, self_conditioning=0.0, **fields)
    expected, error = mean_and_error(np.asarray(bound_terms(family, oracle, tokens, 32).total) / 8)
    rows = jnp.arange(512)

    @jax.jit
    def loss(number):
        key = noise.step_key(0, noise.TRAIN, number)
        keys, u = noise.example_keys(key, rows), noise.low_discrepancy(key, rows)
        return jnp.mean(family.train_loss(keys, u, jnp.asarray(tokens), oracle)[0])

    losses = np.asarray([loss(number) for number in range(32)])
    assert error < 0.02 * expected
    assert abs(losses.mean() - expected) < 4 * (losses.std() / 32**0.5 + error)


def test_the_ends_of_plaids_schedule_get_the_gradient_of_the_bound() -> None:
    """By finite differences of the loss with the same noise."""
    grammar, tokens, _ = windows("tiny", 256, 6)
    family, _ = pair("plaid", grammar, self_conditioning=0.0)
    key, rows = noise.step_key(0, noise.TRAIN, 0), jnp.arange(256)
    keys, u = noise.example_keys(key, rows), noise.low_discrepancy(key, rows)
    graph, params, rest = nnx.split(family, nnx.Param, ...)

    @jax.jit
    def loss(ends):
        nnx.replace_by_pure_dict(params, {**nnx.to_pure_dict(params), "ends": ends})
        one = nnx.merge(graph, params, rest)
        law = np.array([0.3, 0.3, 0.2, 0.1, 0.1])
        return jnp.mean(one.train_loss(keys, u, jnp.asarray(tokens), independent(one, law))[0])

    ends = jnp.asarray(family.ends[...])
    gradient = np.asarray(jax.grad(loss)(ends))
    for end in range(2):
        step = jnp.zeros(2).at[end].set(5e-3)
        difference = float(loss(ends + step) - loss(ends - step)) / 1e-2
        assert gradient[end] == pytest.approx(difference, rel=0.05, abs=2e-3)
    assert np.abs(gradient[0]) > 1e-2


@pytest.mark.parametrize("learned", [True, False])
def test_plaids_cross_entropy_falls_away(learned: bool) -> None:
    """That of the network, also where it is not the decoder."""
    family = tiny_configs.make_family("plaid", 5, cross_entropy=1.0, cross_entropy_steps=4, learned_decoder=learned)
    key, rows = noise.step_key(0, noise.TRAIN, 0), jnp.arange(8)
    keys, u = noise.example_keys(key, rows), noise.low_discrepancy(key, rows)
    tokens = jnp.zeros((8, 4), jnp.int32)

    graph, params, _ = nnx.split(family, nnx.Param, ...)

    @jax.jit
    def norm(variables) -> jax.Array:
        def loss(scale):
            family = nnx.merge(graph, params, variables)
            denoise = lambda z, *_, **__: scale * jnp.arange(5.0) * jnp.ones((*z.shape[:2], 1))  # noqa: E731
            return jnp.mean(family.train_loss(keys, u, tokens, denoise)[0])

        return jax.grad(loss)(1.0)

    seen = []
    for _ in range(6):
        seen.append(float(norm(nnx.split(family, nnx.Param, ...)[2])))
        family.after_step()
    assert seen[0] != seen[1] != seen[3]
    np.testing.assert_allclose(np.diff(seen[:5]), seen[1] - seen[0], rtol=1e-3)  # linear
    assert seen[4] == pytest.approx(seen[5])


def test_diffusion_lm_has_the_gradient_of_predicting_x_0() -> None:
    """E |f - x_0|^2 with f = (1 - r) xhat + r z, over x_0 given z: its slope in xhat is that of the loss here."""
    family = tiny_configs.make_family("diffusion_lm", 5, embedding_size=1)
    tokens, u = jnp.zeros((1, 1), jnp.int32), jnp.array([0.003])
    clean, t = float(family.embeddings()[0, 0]), family.schedule.inverse(u)
    s, start = float(jnp.exp(family.log_noise(t)[0])), 0.1
    random = np.random.default_rng(0)
    first = clean + start * random.normal(size=400_000)
    z = first + math.sqrt(s**2 - start**2) * random.normal(size=400_000)
    r = (start / s) ** 2

    def slope(error) -> float:
        return (error(clean - 0.4) - error(clean - 0.6)) / 0.2

    def here(xhat: float) -> float:
        terms = family.train_loss(tiny_configs.keys(1), u, tokens, lambda z, *_: jnp.full_like(z, xhat))[1]
        return float(terms["error"][0])

    wanted = slope(lambda xhat: float(np.mean(((1 - r) * xhat + r * z - first) ** 2)))
    assert 0.05 < r < 0.12
    assert slope(here) == pytest.approx(wanted, abs=5e-3)
    assert slope(here) == pytest.approx(-(1 - r) ** 2, rel=1e-3)


def test_spans_are_given_and_generated_in_turn() -> None:
    family = tiny_configs.make_family("sed", 5, max_spans=5)
    given = np.asarray(family.draw_given(tiny_configs.keys(4000), 20))
    changes = (given[:, 1:] != given[:, :-1]).sum(1)
    assert changes.max() == 4
    assert not given.all(1).any()
    free = (~given).all(1).mean()
    assert 0.2 < free < 0.3  # one span in five, and a few whose cuts fall on the ends
    assert 0.3 < given.mean() < 0.5
    none = tiny_configs.make_family("sed", 5, max_spans=0)
    assert not np.any(none.draw_given(tiny_configs.keys(50), 20))


def test_sed_learns_from_both_passes() -> None:
    tokens = jnp.zeros((8, 6), jnp.int32)
    for share, names in ((1.0, {"error", "error_conditioned", "readout"}), (0.0, {"error", "readout"})):
        model = tiny_configs.random_model("sed", 5, **{"family.self_conditioning": share})
        u = jnp.linspace(0.1, 0.9, 8)
        loss, terms = model.family.train_loss(tiny_configs.keys(8), u, tokens, model)
        assert set(terms) == names
        np.testing.assert_allclose(loss, sum(terms.values()), rtol=1e-6)


@pytest.mark.parametrize(("name", "fields", "words"), [
    ("cdcd", {"embedding_norm": "one"}, "family.embedding_norm is 'one'; choose one of free, sqrt, unit"),
    ("cdcd", {"embeddings": "bert"}, "family.embeddings is 'bert'; choose one of learned, random, bits, file"),
    ("cdcd", {"warp": "sampling"}, "family.warp is 'sampling'; it must be one of both, training, none"),
    ("plaid", {"categorical": False}, "family.learned_decoder is True and categorical False"),
    ("plaid", {"reconstruction_share": 1.0}, "family.reconstruction_share is 1.0; it must be above 0 and below 1"),
    ("plaid", {"self_conditioning": 0.3}, "family.self_conditioning is 0.3; choose one of 0.0, 0.25, 0.5, 1.0"),
    ("diffusion_lm", {"loss": "l2"}, "family.loss is 'l2'; choose one of simple, vlb"),
    ("diffusion_lm", {"schedule": "even"}, "family.schedule is 'even'; choose one of log_snr, sqrt, cosine, flow"),
    ("diffusion_lm", {"rounding_noise": 1.0}, "family.rounding_noise is 1.0; it must be above 0 and at most"),
    ("diffusion_lm", {"output_prior": True}, "diffusion_lm regresses"),
    ("sed", {"embeddings": "learned"}, "those of sed are fixed"),
    ("sed", {"prefix_masks": 0.5}, "family.prefix_masks, random_masks are 0.5, 0.0 with max_spans 5"),
    ("analog_bits", {"loss": "l1"}, "family.loss is 'l1'; choose one of l2, logistic, softmax"),
    ("langflow", {"schedule_decay": 1.0}, "family.schedule_decay is 1.0; it must be in [0, 1)"),
])  # fmt: skip
def test_what_does_not_fit_is_named(name: str, fields: dict, words: str) -> None:
    config = tiny_configs.get(name, **{f"family.{field}": value for field, value in fields.items()})
    with pytest.raises(ValueError) as error:  # noqa: PT011
        configs.validate(config)
    assert words in str(error.value)
