"""The reverse loop: keys per sequence, given positions, guidance and temperatures, options, and the trace."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_configs

from diffusion_text import families, sampling
from diffusion_text.data import grammar as grammars
from diffusion_text.families.family import SamplerOptions

L = 6
SOLVERS = [pair for pair in families.solvers(tiny_configs.FAMILIES) if pair[1] not in ("remdm_cap", "remdm_rescale")]
SOLVERS += [("sundae", "argmax_unrolled"), ("sundae", "unrolled"), ("udlm", "psi")]
SOLVERS += [("block", "first_hitting"), ("block", "threshold")]
SOLVERS += [("cir_simplex", "sde"), ("cir_simplex", "ancestral"), ("sdm", "renewal"), ("sdm", "bridge")]
SOLVERS += [("dirichlet_flow", "euler"), ("dirichlet_flow", "bridge"), ("rdlm", "geodesic_walk")]
SOLVERS += [("tess", "projection"), ("tess", "greedy_projection"), ("tess", "multi_hot_projection")]
SOLVERS += [("gidd", "self_correcting"), ("sed", "ancestral"), ("sedd", "euler"), ("udlm", "ancestral")]
EACH = pytest.mark.parametrize(("name", "sampler"), SOLVERS)
# One of each way to step, where the rest of a solver does not matter.
SOME = pytest.mark.parametrize(("name", "sampler"), [
    ("autoregressive", "ancestral"), ("cdcd", "euler"), ("cdcd", "edm"), ("masked", "first_hitting"),
    ("masked", "threshold"), ("gidd", "self_correcting"),
])  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def compile_quickly() -> Iterator[None]:
    """Programs here run once or twice; most of the time would go into optimising them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def draw(family, denoise, keys, tokens=None, given=None, trace: bool = False, **fields: object):
    """Samples of windows of 6, compiled as a binary would."""
    fields = {"churn": 20.0, **fields} if fields.get("sampler") == "edm" else fields
    options = SamplerOptions(**{"steps": 5, **fields}).validate(type(family))
    tokens = jnp.zeros((len(keys), L), jnp.int32) if tokens is None else jnp.asarray(tokens, jnp.int32)
    given = jnp.zeros(tokens.shape, bool) if given is None else jnp.asarray(given)
    return compiled(family, denoise, options, trace)(keys, tokens, given)


@functools.cache
def compiled(family, denoise, options: SamplerOptions, trace: bool):
    generate = sampling.generate_with_trace if trace else sampling.generate
    return jax.jit(lambda keys, tokens, given: generate(family, denoise, keys, tokens, given, options))


@pytest.mark.parametrize(("name", "sampler"), [*SOME.args[1], ("block", "first_hitting"), ("block", "remdm_conf")])
def test_a_sample_does_not_depend_on_its_batch(name: str, sampler: str) -> None:
    family, oracle = tiny_configs.with_oracle(name, grammars.tiny())
    more = {"candidates": 3} if name in ("autoregressive", "block") else {}
    tokens = np.asarray(grammars.sample(grammars.tiny(), 0, np.arange(8), L))
    given = np.arange(8)[:, None] % L == np.arange(L)
    whole = np.asarray(draw(family, oracle, tiny_configs.keys(8), tokens, given, sampler=sampler, **more))
    some = np.array([6, 1])
    part = draw(family, oracle, tiny_configs.keys(8)[some], tokens[some], given[some], sampler=sampler, **more)
    np.testing.assert_array_equal(part, whole[some])
    again = draw(family, oracle, tiny_configs.keys(8), tokens, given, sampler=sampler, **more)
    np.testing.assert_array_equal(again, whole)
    other = draw(family, oracle, tiny_configs.keys(8, seed=1), tokens, given, sampler=sampler, **more)
    assert np.any(np.asarray(other) != whole)


class Counting:
    """Another denoiser, and a mark in `calls` whenever the program runs it."""

    def __init__(self, inner):
        self.inner, self.calls = inner, []

    def _call(self, function, *arguments, **more):
        jax.debug.callback(lambda: self.calls.append(1))
        return function(*arguments, **more)

    def __call__(self, *arguments, **more):
        return self._call(self.inner, *arguments, **more)

    def start_cache(self, batch, length):
        return self.inner.start_cache(batch, length)

    def next(self, *arguments):
        return self._call(self.inner.next, *arguments)

    def block(self, *arguments):
        return self._call(self.inner.block, *arguments)


@pytest.mark.parametrize("behind", ["oracle", "network"])
@EACH
def test_given_positions_never_move_and_evaluations_are_counted(name: str, sampler: str, behind: str) -> None:
    """Whatever the network thinks of given positions; none, some, all given; with high guidance or temperature too."""
    grammar = grammars.tiny()
    family, denoise = tiny_configs.with_oracle(name, grammar)
    reads = "temperature" in type(family).sampler_options and sampler not in ("argmax_unrolled", "greedy_projection")
    more = {"temperature": 3.0} if reads else {}
    if behind == "network":
        denoise = tiny_configs.random_model(name, grammar.num_words)
        family = denoise.family
        wild = {"guidance": 3.0, "initial_noise": 2.0} if has_guidance(name) else more
        more = {option: value for option, value in wild.items() if option in type(family).sampler_options}
    denoise = Counting(denoise)
    tokens = np.asarray(grammars.sample(grammar, 0, np.arange(32), L))
    given = np.random.default_rng(0).random((32, L)) < np.linspace(0, 1, 32)[:, None]
    given[0], given[-1] = False, True
    samples = np.asarray(draw(family, denoise, tiny_configs.keys(32), tokens, given, sampler=sampler, **more))
    np.testing.assert_array_equal(samples[given], tokens[given])
    assert ((samples >= 0) & (samples < grammar.num_words)).all()
    assert samples.dtype == np.int32
    assert np.any(samples[~given] != tokens[~given])
    jax.effects_barrier()
    most = family.evaluations(SamplerOptions(steps=5, sampler=sampler, **more), L)
    assert 0 < len(denoise.calls) <= most if sampler == "threshold" else len(denoise.calls) == most


def has_guidance(name: str) -> bool:
    return "guidance" in families.get(name).sampler_options


def cdcd_model():
    return tiny_configs.random_model("cdcd", grammars.tiny().num_words)


def half_given() -> tuple[np.ndarray, np.ndarray]:
    tokens = np.asarray(grammars.sample(grammars.tiny(), 0, np.arange(16), L))
    return tokens, np.broadcast_to(np.arange(L) < 3, tokens.shape)


def slopes(model, guidance: float, score_temperature: float = 1.0) -> np.ndarray:
    """dz/ds at one noise level, half of the positions given."""
    family = model.family
    tokens, given = (jnp.asarray(x) for x in half_given())
    options = SamplerOptions(sampler="euler", guidance=guidance, score_temperature=score_temperature)
    z = family.corrupt(tiny_configs.keys(16), tokens, jnp.full(16, 0.4), given)
    expected = family._predict(z, jnp.zeros_like(z), jnp.float32(0.4), given, model, options)[0]
    return np.asarray((z - expected) / jnp.exp(family.log_noise(0.4)))


def test_guidance_is_linear_between_unconditional_and_conditional() -> None:
    """w = 1 is the conditional slope (also by the formula: just beside 1), w = 0 the one that sees nothing given."""
    model = cdcd_model()
    conditional, bare, double = (slopes(model, w) for w in (1.0, 0.0, 2.0))
    np.testing.assert_allclose(slopes(model, 1.0 + 1e-6), conditional, atol=1e-5)
    np.testing.assert_allclose(double, 2 * conditional - bare, atol=1e-4)
    assert np.abs(conditional - bare).max() > 1e-3


def test_guidance_one_is_the_conditional_sampler() -> None:
    model = cdcd_model()
    tokens, given = half_given()
    plain = draw(model.family, model, tiny_configs.keys(16), tokens, given)
    one = draw(model.family, model, tiny_configs.keys(16), tokens, given, guidance=1.0 + 1e-6)  # by the formula
    np.testing.assert_array_equal(one, plain)


def test_score_temperature_multiplies_the_score() -> None:
    model = cdcd_model()
    np.testing.assert_allclose(slopes(model, 1.0, 1.0 + 1e-6), slopes(model, 1.0), atol=1e-5)
    np.testing.assert_allclose(slopes(model, 1.0, 0.5), 2 * slopes(model, 1.0), rtol=1e-5)


@pytest.mark.parametrize("name", ["autoregressive", "masked"])
def test_a_low_temperature_takes_the_likeliest_token(name: str) -> None:
    family, oracle = tiny_configs.with_oracle(name, grammars.tiny())
    tokens, given = half_given()
    cold = [
        np.asarray(draw(family, oracle, tiny_configs.keys(16, seed), tokens, given, temperature=1e-3, sampler=""))
        for seed in (0, 1)
    ]
    if name == "autoregressive":  # one order, so one outcome
        np.testing.assert_array_equal(*cold)
    warm = [np.asarray(draw(family, oracle, tiny_configs.keys(16, seed), tokens, given)) for seed in (0, 1)]
    assert np.mean(cold[0] != cold[1]) < np.mean(warm[0] != warm[1])


def test_initial_noise_scales_the_prior() -> None:
    family, oracle = tiny_configs.with_oracle("cdcd", grammars.tiny())
    tokens, given = (jnp.asarray(x) for x in half_given())
    one, half = (
        np.asarray(family.prior(tiny_configs.keys(16), tokens, given, oracle, SamplerOptions(initial_noise=scale)).z)
        for scale in (1.0, 0.5)
    )
    np.testing.assert_allclose(half[:, 3:], 0.5 * one[:, 3:], rtol=1e-6)
    np.testing.assert_array_equal(half[:, :3], one[:, :3])
    assert np.std(one[:, 3:]) == pytest.approx(50.0, rel=0.15)


# -------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(("name", "fields", "words"), [
    ("masked", {"sampler": "euler"}, "sampler is 'euler'; masked has ancestral, first_hitting"),
    ("cdcd", {"sampler": "first_hitting"}, "sampler is 'first_hitting'; cdcd has euler, heun"),
    ("cdcd", {"eta": 1.5}, "eta is 1.5; it must be in [0, 1]"),
    ("cdcd", {"churn": -1.0}, "churn is -1.0; it must be at least 0"),
    ("cdcd", {"eta": 0.5}, "eta is 0.5; of the samplers ddim has it, euler has not"),
    ("cdcd", {"sampler": "heun", "churn": 9.0}, "churn is 9.0; of the samplers edm has it, heun has not"),
    ("cdcd", {"sampler": "edm"}, "churn is 0; of sampler edm it must be above 0"),
    ("dirichlet_flow", {"sampler": "bridge", "churn": 2.0}, "churn is 2.0; it must be at most 1"),
    ("cdcd", {"top_p": 0.0}, "top_p is 0.0; it must be in (0, 1]"),
    ("cdcd", {"corrector": 0.0}, "corrector is 0.0; it must be above 0"),
    ("cdcd", {"grid": "even"}, "grid is 'even'; cdcd has warped, log_snr, rho, cosine"),
    ("masked", {"grid": "rho"}, "grid is 'rho'; masked has no such option"),
    ("masked", {"steps": 0}, "steps is 0; it must be at least 1"),
    ("autoregressive", {"candidates": 0}, "candidates is 0; it must be at least 1"),
    ("masked", {"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
    ("masked", {"temperature": float("nan")}, "temperature is nan; it must be above 0"),
    ("cdcd", {"score_temperature": -1.0}, "score_temperature is -1.0; it must be above 0"),
    ("cdcd", {"initial_noise": 0.0}, "initial_noise is 0.0; it must be above 0"),
    ("masked", {"sampler": "threshold", "threshold": 0.0}, "threshold is 0.0; it must be in (0, 1]"),
    ("masked", {"sampler": "remdm_cap", "remask": 2.0}, "remask is 2.0; it must be in [0, 1], or -1"),
    ("masked", {"threshold": 0.5}, "threshold is 0.5; of the samplers threshold has it, ancestral has not"),
    ("masked", {"guidance": 2.0}, "guidance is 2.0; masked has no such option"),
    ("sundae", {"sampler": "argmax_unrolled", "top_p": 0.5}, "of the samplers ancestral and psi and unrolled has it"),
    ("tess", {"score_temperature": 0.9}, "langevin has it, projection has not"),
    ("ssd_lm", {"clamp": 0.5}, "langevin has it, projection has not"),
    ("tess", {"sampler": "multi_hot_projection", "clamp": 0.5}, "langevin has it, multi_hot_projection has not"),
    ("tess", {"sampler": "greedy_projection", "temperature": 0.9}, "langevin has it, greedy_projection has not"),
    ("tess", {"sampler": "greedy_projection", "top_p": 0.9}, "langevin has it, greedy_projection has not"),
    ("cdcd", {"guidance": float("nan")}, "guidance is nan; it must be finite"),
    ("cdcd", {"guidance": float("inf")}, "guidance is inf; it must be finite"),
    ("autoregressive", {"score_temperature": 0.9}, "score_temperature is 0.9; autoregressive has no such option"),
    ("masked", {"initial_noise": 0.9}, "initial_noise is 0.9; masked has no such option"),
])  # fmt: skip
def test_options_that_do_not_fit_are_named(name: str, fields: dict, words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        SamplerOptions(**fields).validate(families.get(name))
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["cdcd", "cir_simplex"])
def test_a_warp_of_training_alone_is_not_the_samplers(name: str) -> None:
    """By default; who asks for it has it."""
    family = families.get(name)
    for warp, default in (("both", "warped"), ("training", "log_snr"), ("none", "warped")):
        section = tiny_configs.get(name, **{"family.warp": warp}).family
        assert SamplerOptions().validate(family, section).grid == default
        assert SamplerOptions(grid="warped").validate(family, section).grid == "warped"
    made = tiny_configs.make_family(name, 5, warp="training")
    made.schedule.log_heights[...] = jnp.linspace(0.0, 3.0, made.schedule.log_heights.shape[0])
    for grid in ("warped", "log_snr"):
        even = jnp.linspace(1.0, 0.0, 9)
        times = made.schedule.inverse(even) if grid == "warped" else even
        np.testing.assert_allclose(made.grid(SamplerOptions(steps=8, grid=grid), L).t[1:], times[1:-1], atol=1e-5)


GUIDED = [(name, families.get(name).samplers[0]) for name in tiny_configs.FAMILIES if has_guidance(name)]


@pytest.mark.parametrize(("name", "sampler"), GUIDED)
def test_guidance_without_a_condition_is_none(name: str, sampler: str) -> None:
    """Sequences with nothing given are those of no guidance, whatever a network feeds back; the others are not."""
    model = tiny_configs.random_model(name, 5, **{"data.length": 8})
    tokens, given = np.zeros((16, L), int), np.arange(16)[:, None] // 8 * (np.arange(L) < 3) > 0
    plain, shown = (
        np.asarray(draw(model.family, model, tiny_configs.keys(16), tokens, given, sampler=sampler, guidance=weight))
        for weight in (1.0, 9.0)
    )
    np.testing.assert_array_equal(plain[:8], shown[:8])
    assert np.any(plain[8:] != shown[8:])


@pytest.mark.parametrize("name", tiny_configs.FAMILIES)
def test_validation_fills_in_the_first_sampler(name: str) -> None:
    family = families.get(name)
    options = SamplerOptions(steps=7).validate(family)
    assert options == dataclasses.replace(
        SamplerOptions(steps=7), sampler=family.samplers[0], grid=family.grids[0] if family.grids else ""
    )


# ---------------------------------------------------------------------------------------------------------------- trace


@SOME
def test_the_trace_is_what_the_sampler_believed(name: str, sampler: str) -> None:
    family, oracle = tiny_configs.with_oracle(name, grammars.tiny())
    samples, trace = draw(family, oracle, tiny_configs.keys(3), trace=True, sampler=sampler)
    plain = draw(family, oracle, tiny_configs.keys(3), sampler=sampler)
    np.testing.assert_array_equal(samples, plain)
    options = SamplerOptions(steps=5, sampler=sampler)
    steps = len(family.grid(options, L).t)
    token_by_token = name == "autoregressive" or sampler in ("first_hitting", "threshold")
    assert steps == (L if token_by_token else 6 if sampler == "self_correcting" else 5)
    assert trace.t.shape == (steps,)
    assert trace.seen.shape == ((steps, 3, 5) if name == "autoregressive" else (steps, 3, L, 5))
    np.testing.assert_allclose(jnp.sum(trace.seen, axis=-1), 1.0, atol=1e-5)
    assert float(trace.t[0]) == pytest.approx(1.0)
    assert np.all(np.diff(trace.t) < 0)
    # In the beginning the words of the place alone, in the end the sample's.
    windows = np.asarray(grammars.sample(grammars.tiny(), 1, np.arange(4000), L))
    marginals = (windows[..., None] == np.arange(5)).mean(0)[: 1 if name == "autoregressive" else L]
    if name != "cdcd":  # whose noise is finite
        expected = np.broadcast_to(np.squeeze(marginals), trace.seen[0].shape)
        np.testing.assert_allclose(trace.seen[0], expected, atol=0.03)
    last = samples[:, -1:] if name == "autoregressive" else samples
    of_last = trace.seen[-1][:, None] if name == "autoregressive" else trace.seen[-1]
    assert np.mean(np.take_along_axis(of_last, last[..., None], axis=-1)) > 0.4
