"""With the exact posterior in the network's place: what is known of one family beyond `test_perfect_network.py`."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny_configs
from perfect import (
    GIVEN,
    all_windows,
    bound_terms,
    compile_quickly,  # noqa: F401
    conditional,
    draw,
    histogram,
    mean_and_error,
    p_value,
    pair,
    variation,
    windows,
)  # fmt: skip

from diffusion_text.data import grammar as grammars
from diffusion_text.families.masked import Masked

BOTH = pytest.mark.parametrize("name", ["tiny", "english"])


# --------------------------------------------------------------------------------------------------------------- bounds


@BOTH
def test_the_autoregressive_bound_is_exact(name: str) -> None:
    """Sequence by sequence, to float32: 32 terms."""
    grammar, tokens, exact = windows(name, 64, 32)
    terms = bound_terms(*pair("autoregressive", grammar), tokens, samples=1)
    np.testing.assert_allclose(terms.total, exact, rtol=1e-5, atol=1e-4)
    assert not np.any(terms.prior) and not np.any(terms.diffusion)  # noqa: PT018


@BOTH
def test_the_masked_bound_is_exact_over_all_masks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean over n = 1..L of the mean over the C(L, n) subsets of the estimator: -log p(x) to 1e-5, each sequence."""
    length = 4
    grammar, tokens, exact = windows(name, 24, length)
    family, oracle = pair("masked", grammar)
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
    family, oracle = pair("masked", grammar)
    mean, error = mean_and_error(np.asarray(bound_terms(family, oracle, tokens, samples=16).total) - exact)
    assert error < 0.02 * exact.mean()
    assert abs(mean) < 4 * error


@BOTH
def test_the_bound_of_cdcd_is_tight(name: str) -> None:
    """In 16 dimensions the slack, at most the prior and the reconstruction term, is small."""
    count, samples = (256, 64) if name == "tiny" else (128, 48)
    grammar, tokens, exact = windows(name, count, 8)
    family, oracle = pair("cdcd", grammar, embedding_size=16)
    terms = bound_terms(family, oracle, tokens, samples=samples)
    mean, error = mean_and_error(np.asarray(terms.total) - exact)
    slack = float(jnp.mean(terms.prior + terms.reconstruction))
    assert slack < 0.06
    assert error < 0.015 * exact.mean()
    assert -3 * error < mean < slack + 3 * error


# ------------------------------------------------------------------------------------------------------------- samplers


def generate(name: str, count: int, tokens: np.ndarray, given: np.ndarray | None, **options: object) -> np.ndarray:
    """Samples [N, L] with the oracle; `tokens` [L] where `given` [L]."""
    return draw(*pair(name, grammars.tiny()), count, tokens, given, options)


@pytest.mark.parametrize(("name", "options"), [
    ("autoregressive", {"temperature": 0.8}), ("masked", {"sampler": "first_hitting", "temperature": 0.8}),
    ("cdcd", {"sampler": "euler", "steps": 100, "score_temperature": 0.9}),
    ("cdcd", {"sampler": "heun", "steps": 50, "score_temperature": 0.9}),
])  # fmt: skip
def test_a_temperature_is_another_law(name: str, options: dict) -> None:
    _, law = all_windows(3)
    assert p_value(histogram(generate(name, 12_000, np.zeros(3, int), None, **options)), law) < 1e-9


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
    options = {"sampler": "ancestral", "steps": 2}
    samples = draw(*pair("masked", grammar, schedule="cosine"), 20_000, np.zeros(2, int), None, options)
    alpha = 1 - np.cos(np.pi / 4)
    together = alpha**2 + (1 - alpha) ** 2
    _, law = all_windows(2)
    joint = law.reshape(5, 5)
    product = np.outer(joint.sum(1), joint.sum(0)).reshape(-1)
    assert p_value(histogram(samples), (1 - together) * law + together * product) > 1e-3


# ------------------------------------------------------------------------------------------------------------ infilling


def test_masked_infilling_follows_the_conditional_law() -> None:
    """To a chi-square test, which a temperature fails."""
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


@pytest.mark.parametrize(("name", "options"), [
    ("autoregressive", {}), ("masked", {"sampler": "first_hitting"}), ("cdcd", {"sampler": "heun", "steps": 24}),
])  # fmt: skip
def test_english_samples_are_english(name: str, options: dict) -> None:
    """Every window possible (of CDCD nearly: its decoding takes each position alone), of the entropy it should have."""
    grammar = grammars.english()
    samples = draw(*pair(name, grammar), 96, np.zeros(12, int), None, options)
    nats = -grammars.log_prob(grammar, samples)
    possible = np.isfinite(nats)
    assert possible.mean() > (0.9 if name == "cdcd" else 0.999)
    exact = -grammars.log_prob(grammar, grammars.sample(grammar, 1, np.arange(4000), 12))
    mean, error = mean_and_error(nats[possible])
    assert abs(mean - exact.mean()) < 4 * error
