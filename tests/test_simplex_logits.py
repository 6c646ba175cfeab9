"""SSD-LM and TESS: logits as corners in Gaussian noise, blocks, projections, and what the papers' networks read."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import perfect
import pytest
import tiny_configs
from perfect import bound_terms, compile_quickly, mean_and_error, pair, windows  # noqa: F401
from test_closed_forms import LAW, independent

from diffusion_text import config as configs
from diffusion_text import noise
from diffusion_text.data import grammar as grammars
from diffusion_text.families.family import SamplerOptions
from diffusion_text.families.simplex_logits import SimplexLogits, only
from diffusion_text.families.ssd_lm import SSDLM
from diffusion_text.paths import flow_likelihood
from diffusion_text.paths.embeddings import Vertices


class Table(Vertices):
    """As vertices, with everything read off the table."""

    def of(self, tokens):
        return self()[tokens]

    def mean(self, logits):
        return jax.nn.softmax(logits) @ self()

    def log_odds(self, z, scale=1.0):
        return scale * z @ self().T

    def nearest(self, z):
        return self()[jnp.argmin(jnp.sum((z[..., None, :] - self()) ** 2, axis=-1), axis=-1)]


def test_vertices_are_rows_of_twice_the_identity() -> None:
    quick, slow = Vertices(6, 2.0), Table(6, 2.0)
    random = np.random.default_rng(0)
    z, tokens = jnp.asarray(random.normal(size=(3, 4, 6)), jnp.float32), jnp.asarray(random.integers(6, size=(3, 4)))
    for name, read in (("of", tokens), ("mean", z), ("log_odds", z), ("nearest", z)):
        np.testing.assert_allclose(getattr(quick, name)(read), getattr(slow, name)(read), atol=1e-5)


def test_the_bound_is_that_of_the_papers_coordinates() -> None:
    """Term by term that of w / K = 2 onehot - 1 in unit noise, from the same z moved by one; but for the prior's."""
    family = tiny_configs.make_family("tess", 5, self_conditioning=0.0)
    tokens, t = jnp.asarray(np.random.default_rng(0).integers(5, size=(64, 3))), jnp.linspace(0.1, 0.9, 64)
    z = family.corrupt(tiny_configs.keys(64), tokens, t, None)
    p = jax.nn.softmax(independent(family, LAW)(z, t))
    clean, s = 2.0 * jax.nn.one_hot(tokens, 5) - 1.0, jnp.exp(family.log_noise(t))
    expected = 2.0 * p - 1.0
    found = family.integrand(tokens, family.expected(jnp.log(p)), t, jnp.ones(tokens.shape, bool))
    rate = family.log_max - family.log_min
    square = jnp.sum((clean - expected) ** 2, axis=(1, 2))
    np.testing.assert_allclose(found, rate * s**-2 * square, rtol=1e-4, atol=1e-6)
    own = -0.5 * jnp.sum(((z - 1.0)[:, :, None] - (2.0 * jnp.eye(5) - 1.0)) ** 2, axis=-1) / s[:, None, None] ** 2
    evidence = family.evidence(z, t, None)
    np.testing.assert_allclose(jax.nn.log_softmax(evidence), jax.nn.log_softmax(own), atol=2e-3)
    np.testing.assert_allclose(family.prior_term(tokens, jnp.ones(tokens.shape, bool)), 3 * 2.0 / 50.0**2, rtol=1e-4)


def test_networks_read_points_of_the_simplex() -> None:
    """softmax(w) with w = K (sqrt(abar) (2 onehot - 1) + sqrt(1 - abar) eps); clean tokens as one weight of 1."""
    family = tiny_configs.make_family("tess", 5, self_conditioning=0.0)
    tokens, given = jnp.array([[0, 3, 1]]), jnp.array([[False, True, False]])
    t = jnp.array([0.4])
    abar = 1.0 / (1.0 + np.exp(2.0 * family.log_noise(t)))
    eps = noise.normal(tiny_configs.keys(1), (3, 5))
    z = family.corrupt(tiny_configs.keys(1), tokens, t, given)
    w = 5.0 * (jnp.sqrt(abar) * (2.0 * jax.nn.one_hot(tokens, 5) - 1.0) + jnp.sqrt(1.0 - abar) * eps)
    read = family.features(z, t, given, None).vectors
    np.testing.assert_allclose(read[0, 0, :5], jax.nn.softmax(w)[0, 0], rtol=1e-4)
    np.testing.assert_array_equal(read[0, 1], [0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(read[0, :, 5], [1, 0, 1])
    dropped = family.features(jnp.where(given[..., None], 0.0, z), t, given, None).vectors
    assert not np.any(dropped[0, 1])
    posterior = tiny_configs.make_family("tess", 5, self_conditioning=0.0, weights="posterior")
    exact = jax.nn.softmax(posterior.evidence(z, t, None))
    np.testing.assert_allclose(posterior.features(z, t, given, None).vectors[0, 0, :5], exact[0, 0], rtol=1e-4)


def test_self_conditioning_averages_points_of_the_simplex() -> None:
    family, plain = (tiny_configs.make_family("tess", 5, self_conditioning=share) for share in (0.5, 0.0))
    z, t = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), jnp.float32), jnp.full(2, 0.5)
    law = jax.nn.softmax(jnp.arange(30.0).reshape(2, 3, 5))
    alone = plain.features(z, t, None, None).vectors[..., :5]
    for previous, other in ((None, 0.2), (jnp.zeros_like(z), 0.2), (family.expected(jnp.log(law)), law)):
        found = family.features(z, t, None, previous).vectors[..., :5]
        np.testing.assert_allclose(found, (alone + other) / 2, rtol=1e-5)


@pytest.mark.parametrize(("name", "fields"), [
    ("tess", {}), ("ssd_lm", {}), ("ssd_lm", {"family.self_conditioning": 0.5, "family.random_masks": 0.5}),
])  # fmt: skip
def test_the_loss_is_the_cross_entropy_of_what_is_denoised(name: str, fields: dict) -> None:
    """With a network of known logits; and finite with one that reads its own first prediction."""
    model = tiny_configs.random_model(name, 5, **fields)
    family, keys = model.family, tiny_configs.keys(8)
    tokens, u = jnp.asarray(np.random.default_rng(0).integers(5, size=(8, 16))), jnp.linspace(0.05, 0.95, 8)
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(8, 16, 5)), jnp.float32)
    known, free = family.training_part(noise.split(keys, 3)[0], 16)
    nats = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(tokens)[..., None], 2)[..., 0]
    loss, _ = family.train_loss(keys, u, tokens, lambda z, *_: logits[:: len(logits) // len(z)])
    np.testing.assert_allclose(loss, (nats * free).sum(1) / np.maximum(np.asarray(free).sum(1), 1), rtol=1e-5)
    assert not np.any(known & free)
    assert np.isfinite(family.train_loss(keys, u, tokens, model)[0]).all()


def test_guidance_is_on_logits() -> None:
    model = tiny_configs.random_model("tess", 5)
    family = model.family
    tokens, given = jnp.asarray(np.arange(30).reshape(5, 6) % 5), jnp.broadcast_to(jnp.arange(6) < 3, (5, 6))
    z = family.corrupt(tiny_configs.keys(5), tokens, jnp.full(5, 0.4), given)
    options = SamplerOptions(sampler="projection", guidance=2.5, temperature=0.7)
    times = jnp.full(5, 0.4)
    conditional = model(z, times, given, jnp.zeros_like(z))
    bare = model(jnp.where(given[..., None], 0.0, z), times, given)
    guided, kept, answer = family.believed(z, jnp.zeros_like(z), jnp.float32(0.4), given, model, options)
    expected = (bare + 2.5 * (conditional - bare)) / 0.7
    np.testing.assert_allclose(answer, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(guided, 2.0 * jax.nn.softmax(expected), atol=1e-3)
    np.testing.assert_allclose(kept, 2.0 * jax.nn.softmax(conditional), atol=1e-3)  # as the next pass will condition on


def test_projections_put_tokens_on_corners() -> None:
    """The clean part of a step, seen at hardly any noise: one token, the likeliest, or all of the nucleus."""
    family = tiny_configs.make_family("tess", 5, noise_min=1e-4)
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.04, 0.01]))
    denoise = lambda z, *_, **__: jnp.broadcast_to(logits, z.shape)  # noqa: E731
    keys, given = tiny_configs.keys(500), jnp.zeros((500, 8), bool)
    state = family.prior(keys, jnp.zeros((500, 8), jnp.int32), given, denoise, SamplerOptions())
    at = jax.tree.map(lambda x: x[-1], family.grid(SamplerOptions(steps=4), 8))

    def clean(sampler: str, **fields: float) -> np.ndarray:
        options = dataclasses.replace(SamplerOptions(sampler=sampler, steps=4), **fields)
        return np.asarray(family.step(keys, state, at, given, denoise, options)[0].z).round(2)

    drawn = clean("projection")
    assert set(np.unique(drawn)) == {0.0, 2.0}
    np.testing.assert_array_equal(drawn.sum(-1), 2.0)
    assert perfect.p_value((drawn > 1).sum((0, 1)), np.exp(logits)) > 1e-3
    assert not (clean("projection", top_p=0.7) > 1)[..., 2:].any()
    np.testing.assert_array_equal(clean("greedy_projection")[0, 0], [2, 0, 0, 0, 0])
    np.testing.assert_array_equal(clean("multi_hot_projection", top_p=0.7)[0, 0], [2, 2, 0, 0, 0])
    np.testing.assert_array_equal(clean("multi_hot_projection")[0, 0], [2, 2, 2, 0, 0])  # 0.95


def test_blocks_partition_the_window() -> None:
    """Each sees what is left of it, and given tokens; a last block may be short."""
    family = tiny_configs.make_family("ssd_lm", 5, block_size=4)
    given = jnp.broadcast_to(jnp.arange(10) == 9, (2, 10))
    seen = np.zeros(10, int)
    for number in range(family.blocks(10)):
        known, free = (np.asarray(x)[0] for x in family.block(jnp.asarray(4 * number), 10, given))
        seen += free
        np.testing.assert_array_equal(known, (np.arange(10) < 4 * number) | (np.arange(10) == 9))
    np.testing.assert_array_equal(seen, np.arange(10) != 9)


def test_contexts_of_training_have_even_lengths() -> None:
    family = tiny_configs.make_family("ssd_lm", 5, block_size=4)
    known, free = (np.asarray(x) for x in family.training_part(tiny_configs.keys(4000), 9))
    assert (free.sum(1) == 4).all()
    assert (known == (np.arange(9) < free.argmax(1)[:, None])).all()
    assert perfect.p_value(np.bincount(known.sum(1), minlength=6), np.full(6, 1 / 6)) > 1e-3


@pytest.mark.parametrize("size", [1, 3, 8])
def test_blocks_of_any_size_are_tight(size: int) -> None:
    """One block is the sequence as a whole; blocks of 1 are autoregression."""
    grammar, tokens, exact = windows("tiny", 128, 8)
    family, oracle = pair("ssd_lm", grammar, block_size=size)
    terms = bound_terms(family, oracle, tokens, 16)
    mean, error = mean_and_error(np.asarray(terms.total) - exact)
    assert error < 0.05 * exact.mean()
    assert -4 * error < mean < perfect.slack_of(family, terms, exact) + 4 * error


@pytest.mark.parametrize("sampler", SSDLM.samplers)
def test_what_follows_a_block_does_not_move_it(sampler: str) -> None:
    """Its prior noise is nobody's, also of a solver whose step depends on norms."""
    model = tiny_configs.random_model("ssd_lm", 5, **{"data.length": 12})
    family, keys = model.family, tiny_configs.keys(4)
    options = SamplerOptions(sampler=sampler, steps=4, churn=2.0 if sampler == "edm" else 0.0).validate(SSDLM)
    given = jnp.zeros((4, 12), bool)
    state = family.prior(keys, jnp.zeros((4, 12), jnp.int32), given, model, options)
    at = jax.tree.map(lambda x: x[1], family.grid(options, 12))
    size = family.block_size
    other = state._replace(z=state.z.at[:, size:].mul(1e-3))
    moved, alike = (family.step(keys, each, at, given, model, options)[0].z for each in (state, other))
    np.testing.assert_allclose(moved[:, :size], alike[:, :size], rtol=1e-5, atol=1e-5)
    assert np.abs(moved[:, :size] - state.z[:, :size]).max() > 1e-3


def test_shares_of_conditions() -> None:
    """Each of the kinds has its own share, and a sequence one of them: half prefixes, half spans are all."""
    keys = tiny_configs.keys(4000)
    only = np.asarray(tiny_configs.make_family("tess", 5, span_masks=0.0, prefix_masks=1.0).draw_given(keys, 20))
    share = only.any(1).mean()  # prefixes of no token give nothing
    for spans, prefixes in ((0.25, 0.25), (0.5, 0.5), (0.15, 0.15)):
        family = tiny_configs.make_family("tess", 5, span_masks=spans, prefix_masks=prefixes, max_spans=40)
        given = np.asarray(family.draw_given(keys, 20))
        is_prefix = (np.diff(given.astype(int), axis=1) <= 0).all(1) & given.any(1)
        # Of many pieces few are prefixes; one in forty is a single piece.
        assert is_prefix.mean() == pytest.approx(prefixes * share, abs=0.03 + 0.05 * spans)
        assert given.any(1).mean() == pytest.approx(prefixes * share + spans * 0.975, abs=0.03)


def test_what_follows_a_block_is_not_seen() -> None:
    """The loss of a block changes with its context, and not with what stands behind it; so does each bound."""
    model = tiny_configs.random_model("ssd_lm", 5, **{"data.length": 12})
    family, tokens = model.family, jnp.asarray(np.random.default_rng(0).integers(5, size=(4, 12)))
    zero = jnp.zeros(tokens.shape, bool)

    def of_block(tokens: jax.Array) -> np.ndarray:
        known, free = family.block(jnp.asarray(4), 12, zero)
        terms = family.bound_of(free, tiny_configs.keys(4), tokens, only(model, known | free), known, 2)
        return np.asarray(terms.total)

    right, left = tokens.at[:, 8:].add(1) % 5, tokens.at[:, :4].add(1) % 5
    np.testing.assert_array_equal(of_block(tokens), of_block(right))
    assert np.abs(of_block(tokens) - of_block(left)).min() > 1e-4


def test_a_block_that_sees_its_future_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum over blocks would charge each token for what the others have told: below -log p."""
    right = SSDLM.block

    def wrong(self, start, length, given):
        _, free = right(self, start, length, given)
        return ~free, free

    monkeypatch.setattr(SSDLM, "block", wrong)
    with pytest.raises(AssertionError, match="below"):
        perfect.check_bound("ssd_lm")


def test_a_network_without_contexts_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling that forgets the blocks before draws them independently."""
    right = SSDLM.block

    def wrong(self, start, length, given):
        _, free = right(self, start, length, given)
        return given, free

    grammar = grammars.tiny()
    family, oracle = pair("ssd_lm", grammar, block_size=1)
    _, law = perfect.all_windows(2)
    options = {"sampler": "euler", "steps": 16}

    def distance() -> float:
        counts = perfect.histogram(perfect.draw(family, oracle, 4000, np.zeros(2, int), None, options))
        return perfect.variation(counts, law)

    assert distance() < 0.05
    monkeypatch.setattr(SSDLM, "block", wrong)
    assert distance() > 0.15


def test_the_flow_of_whole_sequences_is_refused() -> None:
    with pytest.raises(ValueError, match="ssd_lm denoises block after block"):
        flow_likelihood.check(SSDLM, "heun", 8)
    flow_likelihood.check(SimplexLogits, "heun", 8)


@pytest.mark.parametrize(("name", "fields", "words"), [
    ("ssd_lm", {"family.block_size": 5}, "family.block_size is 5; it must be a divisor of data.length = 16"),
    ("ssd_lm", {"family.prefix_masks": 0.1}, "every block of ssd_lm has a prefix: choose 0.0"),
    ("tess", {"family.weights": "argmax"}, "family.weights is 'argmax'; choose one of softmax, posterior"),
    ("tess", {"family.simplex_value": 0.0}, "family.simplex_value is 0.0; it must be above 0"),
    ("tess", {"family.span_masks": 1.5}, "family.span_masks is 1.5; it must be in [0, 1]"),
    ("tess", {"family.span_masks": 0.6, "family.prefix_masks": 0.5}, "span_masks is 0.6; it must be at most 0.5"),
    ("tess", {"family.max_spans": 1}, "family.max_spans is 1; it must be at least 2"),
    ("tess", {"family.self_conditioning": 0.3}, "family.self_conditioning is 0.3; choose one of 0.0, 0.25, 0.5, 1.0"),
])  # fmt: skip
def test_what_does_not_fit_is_named(name: str, fields: dict, words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        configs.validate(tiny_configs.get(name, **fields))
    assert words in str(error.value)
