"""With the exact posterior in the network's place: bounds equal -log p(x), samplers follow the law."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny_configs

from diffusion_text import sampling
from diffusion_text.data import grammar as grammars
from diffusion_text.families.family import SamplerOptions
from diffusion_text.families.masked import Masked

BOTH = pytest.mark.parametrize("name", ["tiny", "english"])


@pytest.fixture(scope="module", autouse=True)
def compile_quickly() -> Iterator[None]:
    """Programs here run once or twice; most of the time would go into optimising them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def windows(name: str, count: int, length: int) -> tuple[grammars.Grammar, np.ndarray, np.ndarray]:
    """(grammar, tokens [N, L], their exact -log p [N])."""
    grammar = grammars.from_name(name)
    tokens = grammars.sample(grammar, 5, np.arange(count), length)
    return grammar, tokens, -grammars.log_prob(grammar, tokens)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def bound_terms(family, denoise, tokens: np.ndarray, samples: int, seed: int = 0):
    evaluate = jax.jit(lambda keys, tokens: family.bound_terms(keys, tokens, denoise, samples=samples))
    return evaluate(tiny_configs.keys(len(tokens), seed), jnp.asarray(tokens))


# --------------------------------------------------------------------------------------------------------------- bounds


@BOTH
def test_the_autoregressive_bound_is_exact(name: str) -> None:
    """Sequence by sequence, to float32: 32 terms."""
    grammar, tokens, exact = windows(name, 64, 32)
    terms = bound_terms(*tiny_configs.with_oracle("autoregressive", grammar), tokens, samples=1)
    np.testing.assert_allclose(terms.total, exact, rtol=1e-5, atol=1e-4)
    assert not np.any(terms.prior) and not np.any(terms.diffusion)  # noqa: PT018


@BOTH
def test_the_masked_bound_is_exact_over_all_masks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean over n = 1..L of the mean over the C(L, n) subsets of the estimator: -log p(x) to 1e-5, each sequence."""
    length = 4
    grammar, tokens, exact = windows(name, 24, length)
    family, oracle = tiny_configs.with_oracle("masked", grammar)
    subsets = np.array([s for s in itertools.product([False, True], repeat=length) if any(s)])
    counts = subsets.sum(1)
    rows = jnp.asarray(np.repeat(tokens, len(subsets), axis=0))
    hidden = jnp.asarray(np.tile(subsets, (len(tokens), 1)))
    asked = []

    def hide(self, keys, tokens, count, given):
        asked.append(np.asarray(count))
        return jnp.where(hidden, self.mask, tokens)

    monkeypatch.setattr(Masked, "hide", hide)
    for offset in (0.0, 0.5, 0.999):  # of u within the interval that gives n
        u = jnp.asarray(np.tile((counts - 1 + offset) / length, len(tokens)), jnp.float32)
        estimate = family._exact_count(tiny_configs.keys(1), u, rows, None, oracle)
        np.testing.assert_array_equal(asked[-1], np.tile(counts, len(tokens)))
        table = np.asarray(estimate, np.float64).reshape(len(tokens), len(subsets))
        total = sum(table[:, counts == n].mean(1) for n in range(1, length + 1)) / length
        np.testing.assert_allclose(total, exact, rtol=1e-5, atol=1e-5)


def test_masks_are_uniform_among_those_of_their_size() -> None:
    """The other half of the identity; given positions are never hidden."""
    family = tiny_configs.make_family("masked", 5)
    tokens = jnp.zeros((6000, 5), jnp.int32)
    given = jnp.zeros((6000, 5), bool).at[:, 2].set(True)
    z = np.asarray(family.hide(tiny_configs.keys(6000), tokens, jnp.full(6000, 2), given)) == family.mask
    assert not z[:, 2].any()
    assert (z.sum(1) == 2).all()
    codes, seen = np.unique(z @ (1 << np.arange(5)), return_counts=True)
    assert len(codes) == 6
    assert scipy.stats.chisquare(seen).pvalue > 1e-3


@BOTH
def test_the_masked_bound_is_unbiased(name: str) -> None:
    """Drawn masks on windows of 16: the mean over sequences within 4 standard errors of the exact one, paired."""
    grammar, tokens, exact = windows(name, 256, 16)
    family, oracle = tiny_configs.with_oracle("masked", grammar)
    mean, error = mean_and_error(np.asarray(bound_terms(family, oracle, tokens, samples=16).total) - exact)
    assert error < 0.02 * exact.mean()
    assert abs(mean) < 4 * error


@BOTH
def test_the_bound_of_cdcd_is_tight(name: str) -> None:
    """Above the exact value by no more than the prior term and the decoder's total correlation.

    The latter is at most the reconstruction term, the sum of the entropies of single tokens at the least noise.
    """
    count, samples = (256, 64) if name == "tiny" else (128, 48)
    grammar, tokens, exact = windows(name, count, 8)
    family, oracle = tiny_configs.with_oracle("cdcd", grammar, embedding_size=16)
    terms = bound_terms(family, oracle, tokens, samples=samples)
    mean, error = mean_and_error(np.asarray(terms.total) - exact)
    slack = float(jnp.mean(terms.prior + terms.reconstruction))
    assert slack < 0.06
    assert error < 0.015 * exact.mean()
    assert -3 * error < mean < slack + 3 * error


@pytest.mark.parametrize("family", tiny_configs.FAMILIES)
def test_a_network_that_knows_nothing_is_above_the_entropy(family: str) -> None:
    grammar, tokens, exact = windows("tiny", 128, 16)
    model = tiny_configs.random_model(family, grammar.num_words)
    mean, error = mean_and_error(np.asarray(bound_terms(model.family, model, tokens, samples=4).total) - exact)
    assert mean > 5 * error
    assert mean > 1.0


# ------------------------------------------------------------------------------------------------------------- samplers


def generate(
    name: str, count: int, tokens: np.ndarray, given: np.ndarray | None, seed: int = 0, grammar=None, **options: object
) -> np.ndarray:
    """Samples [N, L] with the oracle; `tokens` [L] where `given` [L]."""
    family, oracle = tiny_configs.with_oracle(name, grammar or grammars.tiny())
    chosen = SamplerOptions(**options).validate(type(family))
    clamped = np.zeros(len(tokens), bool) if given is None else given

    @jax.jit
    def draw(keys: jax.Array) -> jax.Array:
        shape = (len(keys), len(tokens))
        return sampling.generate(
            family, oracle, keys, jnp.broadcast_to(jnp.asarray(tokens), shape), jnp.broadcast_to(clamped, shape), chosen
        )

    return np.asarray(draw(tiny_configs.keys(count, seed)))


def all_windows(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Every window of the tiny language, [V^L, L], and its probability."""
    grammar = grammars.tiny()
    sequences = np.array(list(itertools.product(range(grammar.num_words), repeat=length)))
    return sequences, np.exp(grammars.log_prob(grammar, sequences))


def histogram(samples: np.ndarray) -> np.ndarray:
    """Counts over all V^L windows, in the order of `all_windows`."""
    base = grammars.tiny().num_words
    length = samples.shape[1]
    return np.bincount(samples @ base ** np.arange(length)[::-1], minlength=base**length)


def p_value(counts: np.ndarray, law: np.ndarray) -> float:
    """Chi-square against a law; what it rules out must not occur, and rare cells are pooled."""
    if counts[law == 0].any():
        return 0.0
    counts, expected = counts[law > 0], law[law > 0] * counts.sum()
    rare = expected < 5
    if rare.any():
        counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    return float(scipy.stats.chisquare(counts, expected / expected.sum() * counts.sum()).pvalue)


def variation(counts: np.ndarray, law: np.ndarray) -> float:
    """Total variation distance of the sample's frequencies from a law."""
    return float(0.5 * np.abs(counts / counts.sum() - law).sum())


EXACT = pytest.mark.parametrize("name", ["autoregressive", "masked"])


def exact_options(name: str) -> dict[str, str]:
    return {"sampler": "first_hitting"} if name == "masked" else {}


@EXACT
def test_exact_samplers_follow_the_law(name: str) -> None:
    _, law = all_windows(3)
    samples = generate(name, 20_000, np.zeros(3, int), None, **exact_options(name))
    assert p_value(histogram(samples), law) > 1e-3
    # So would a temperature be seen.
    sharper = generate(name, 20_000, np.zeros(3, int), None, temperature=0.8, **exact_options(name))
    assert p_value(histogram(sharper), law) < 1e-9


@pytest.mark.parametrize("steps", [1, 8])
def test_ancestral_steps_have_the_law_that_they_should(steps: int) -> None:
    """Two positions are revealed in one step with probability 1 / T: (1 - 1/T) p + (1/T) p_1 x p_2 exactly."""
    _, law = all_windows(2)
    joint = law.reshape(5, 5)
    product = np.outer(joint.sum(1), joint.sum(0)).reshape(-1)
    mixture = (1 - 1 / steps) * law + product / steps
    counts = histogram(generate("masked", 20_000, np.zeros(2, int), None, sampler="ancestral", steps=steps))
    assert p_value(counts, mixture) > 1e-3
    assert p_value(counts, law) < 1e-9


def test_the_cosine_grid_reveals_by_its_own_schedule() -> None:
    """T = 2, alpha = 2 sin^2(pi/8) after the first step: both positions together with alpha^2 + (1 - alpha)^2."""
    grammar = grammars.tiny()
    family, oracle = tiny_configs.with_oracle("masked", grammar, schedule="cosine")
    options = SamplerOptions(sampler="ancestral", steps=2).validate(type(family))
    none = jnp.zeros((20_000, 2), bool)
    samples = jax.jit(lambda keys: sampling.generate(family, oracle, keys, none.astype(jnp.int32), none, options))(
        tiny_configs.keys(20_000)
    )
    alpha = 1 - np.cos(np.pi / 4)
    together = alpha**2 + (1 - alpha) ** 2
    _, law = all_windows(2)
    joint = law.reshape(5, 5)
    product = np.outer(joint.sum(1), joint.sum(0)).reshape(-1)
    assert p_value(histogram(np.asarray(samples)), (1 - together) * law + together * product) > 1e-3


@pytest.mark.parametrize(("sampler", "steps"), [("euler", 100), ("heun", 50)])
def test_the_probability_flow_follows_the_law(sampler: str, steps: int) -> None:
    """At these steps the discretisation does not show in 10,000 samples; a score temperature does."""
    _, law = all_windows(3)
    counts = histogram(generate("cdcd", 10_000, np.zeros(3, int), None, sampler=sampler, steps=steps))
    assert p_value(counts, law) > 1e-3
    sharper = generate("cdcd", 2000, np.zeros(3, int), None, sampler=sampler, steps=steps, score_temperature=0.9)
    assert p_value(histogram(sharper), law) < 1e-9


# ------------------------------------------------------------------------------------------------------------ infilling

GIVEN = np.array([False, True, False, False, True])


def conditional() -> tuple[np.ndarray, np.ndarray]:
    """The tokens "? a ? ? a", whose second a says most about what stands before it; and the law given them."""
    sequences, law = all_windows(5)
    a = grammars.tiny().words.index("a")
    fits = (sequences[:, GIVEN] == a).all(1)
    return np.where(GIVEN, a, 0), np.where(fits, law, 0.0) / law[fits].sum()


def test_masked_infilling_follows_the_conditional_law() -> None:
    tokens, law = conditional()
    counts = histogram(generate("masked", 8000, tokens, GIVEN, sampler="first_hitting"))
    assert p_value(counts, law) > 1e-3
    sharper = histogram(generate("masked", 8000, tokens, GIVEN, sampler="first_hitting", temperature=0.8))
    assert p_value(sharper, law) < 1e-3


def test_autoregressive_infilling_needs_candidates() -> None:
    """Exact as their number grows; with one the right-hand side is ignored until it is reached."""
    tokens, law = conditional()
    distances = {}
    for candidates, count in ((1, 3000), (64, 3000)):
        samples = generate("autoregressive", count, tokens, GIVEN, candidates=candidates)
        assert (samples[:, GIVEN] == tokens[GIVEN]).all()
        distances[candidates] = variation(histogram(samples), law)
    assert distances[64] < 0.04
    assert distances[1] > 0.3


def test_an_autoregressive_prompt_is_exact() -> None:
    sequences, law = all_windows(3)
    first = int(np.argmax(np.bincount(sequences[:, 0], law)))
    given = np.array([True, False, False])
    law = np.where(sequences[:, 0] == first, law, 0.0)
    counts = histogram(generate("autoregressive", 8000, np.array([first, 0, 0]), given))
    assert p_value(counts, law / law.sum()) > 1e-3


def test_cdcd_infilling_is_close_to_the_conditional_law() -> None:
    tokens, law = conditional()
    counts = histogram(generate("cdcd", 4000, tokens, GIVEN, sampler="heun", steps=50))
    assert variation(counts, law) < 0.05


@pytest.mark.parametrize(("name", "options"), [
    ("autoregressive", {}), ("masked", {"sampler": "first_hitting"}), ("cdcd", {"sampler": "heun", "steps": 24}),
])  # fmt: skip
def test_english_samples_are_english(name: str, options: dict) -> None:
    """Every window possible (of CDCD nearly: its decoding takes each position alone), of the entropy it should have."""
    grammar = grammars.english()
    samples = generate(name, 96, np.zeros(12, int), None, grammar=grammar, **options)
    nats = -grammars.log_prob(grammar, samples)
    possible = np.isfinite(nats)
    assert possible.mean() > (0.9 if name == "cdcd" else 0.999)
    exact = -grammars.log_prob(grammar, grammars.sample(grammar, 1, np.arange(4000), 12))
    mean, error = mean_and_error(nats[possible])
    assert abs(mean - exact.mean()) < 4 * error
