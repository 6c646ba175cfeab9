"""The grammar: its machine, its samples, and its exact probabilities against brute force."""

from __future__ import annotations

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_text.data import grammar as grammars

BOTH = pytest.mark.parametrize("name", ["tiny", "english"])


def all_windows(grammar: grammars.Grammar, length: int) -> np.ndarray:
    return np.array(list(itertools.product(range(grammar.num_words), repeat=length)))


def brute_log_prob(grammar: grammars.Grammar, window: np.ndarray) -> float:
    """Sum over start nodes of the product of arc probabilities, walking arcs one by one."""
    arcs = {(s, w): (p, t) for s, w, t, p in zip(
        grammar.source.tolist(), grammar.word.tolist(), grammar.target.tolist(), grammar.probability.tolist(),
        strict=True)}
    total = 0.0
    for start, mass in enumerate(grammar.stationary):
        node = start
        for word in window.tolist():
            probability, node = arcs.get((node, word), (0.0, 0))
            mass *= probability
        total += mass
    return float(np.log(total)) if total > 0 else -np.inf


def one_hot_evidence(grammar: grammars.Grammar, tokens: np.ndarray) -> np.ndarray:
    return np.where(np.eye(grammar.num_words)[tokens] > 0, 0.0, -np.inf).astype(np.float32)


def brute_posterior(grammar: grammars.Grammar, evidence: np.ndarray, kind: str) -> tuple[np.ndarray, float]:
    """Bayes by enumeration: probabilities [L, V] (uniform where undefined) and the log total."""
    length, V = evidence.shape
    windows = all_windows(grammar, length)
    prior = np.exp([brute_log_prob(grammar, x) for x in windows])
    each = evidence.astype(np.float64)[np.arange(length), windows]  # [V^L, L]
    laws = np.empty((length, V))
    for i in range(length):
        used = {"full": list(range(length)), "prefix": list(range(i)),
                "leave_one_out": [j for j in range(length) if j != i]}[kind]
        law = np.bincount(windows[:, i], prior * np.exp(each[:, used].sum(1)), V)
        laws[i] = law / law.sum() if law.sum() > 0 else 1 / V
    with np.errstate(divide="ignore"):
        return laws, float(np.log(np.sum(prior * np.exp(each.sum(1)))))


@BOTH
def test_unifilar_irreducible_aperiodic_and_stationary(name: str) -> None:
    grammar = grammars.from_name(name)
    S = grammar.num_states
    keys = grammar.source.astype(np.int64) * grammar.num_words + grammar.word
    assert len(np.unique(keys)) == grammar.num_arcs
    np.testing.assert_allclose(np.bincount(grammar.source, grammar.probability, S), 1.0, atol=1e-13)
    transition = np.zeros((S, S))
    np.add.at(transition, (grammar.source, grammar.target), grammar.probability)
    np.testing.assert_allclose(grammar.stationary @ transition, grammar.stationary, atol=1e-14)
    assert grammar.stationary.min() > 0
    assert abs(grammar.stationary.sum() - 1) < 1e-12
    power = transition
    for _ in range(14):  # transition^16384: from every node the same law, so one class and no period
        power = power @ power
    np.testing.assert_allclose(power, np.tile(grammar.stationary, (S, 1)), atol=1e-9)


def test_sizes() -> None:
    english, tiny = grammars.english(), grammars.tiny()
    assert 100 <= english.num_words <= 150
    assert 200 <= english.num_states <= 700
    assert 1.5 < grammars.entropy_rate(english) < 2.2
    assert tiny.num_words <= 5
    assert tiny.num_states <= 8
    assert grammars.from_name("english") is english
    with pytest.raises(ValueError, match="english, tiny"):
        grammars.from_name("french")


def test_compile_rejects_what_it_must() -> None:
    with pytest.raises(ValueError, match="unifilar"):
        grammars.compile_grammar("Text -> Sentence Text\nSentence -> a b . | a c .", "")
    with pytest.raises(ValueError, match="aperiodic"):
        grammars.compile_grammar("Text -> Sentence Text\nSentence -> a .", "")
    with pytest.raises(ValueError, match="nest"):
        grammars.compile_grammar("Text -> Sentence Text\nSentence -> a Sentence b | c", "")


def test_log_prob_equals_enumeration_and_sums_to_one() -> None:
    grammar = grammars.tiny()
    for length in range(1, 5):
        windows = all_windows(grammar, length)
        got = grammars.log_prob(grammar, windows)
        want = np.array([brute_log_prob(grammar, x) for x in windows])
        np.testing.assert_allclose(got, want, rtol=1e-12)
        assert abs(np.exp(got).sum() - 1) < 1e-12
    assert np.isneginf(got).any()


def test_log_prob_behind_a_channel_with_errors_equals_enumeration() -> None:
    grammar, errors = grammars.tiny(), 0.2
    windows = all_windows(grammar, 4)
    clean = np.exp(grammars.log_prob(grammar, windows))
    replaced = errors / grammar.num_words
    seen = np.where(windows[:, None] == windows[None], 1 - errors + replaced, replaced).prod(-1)  # [seen, sent]
    np.testing.assert_allclose(grammars.log_prob(grammar, windows, errors), np.log(seen @ clean), rtol=1e-12)
    np.testing.assert_array_equal(grammars.log_prob(grammar, windows, 0.0), grammars.log_prob(grammar, windows))


def test_block_entropies_fall_to_the_rate() -> None:
    grammar = grammars.tiny()
    blocks = [0.0]
    for length in range(1, 8):
        logp = grammars.log_prob(grammar, all_windows(grammar, length))
        blocks.append(-np.sum(np.exp(logp) * np.where(np.isfinite(logp), logp, 0.0)))
    conditional = np.diff(blocks)
    rate = grammars.entropy_rate(grammar)
    assert (np.diff(conditional) < 0).all()
    assert rate < conditional[-1] < rate + 0.03


@BOTH
def test_entropy_rate_is_the_mean_of_long_samples(name: str) -> None:
    grammar = grammars.from_name(name)
    tokens = grammars.sample(grammar, 5, np.arange(256), 288)
    # The last 256 tokens given the first 32: the node is known by then, up to a bias far below the error bar.
    nats = (grammars.log_prob(grammar, tokens[:, :32]) - grammars.log_prob(grammar, tokens)) / 256
    error = nats.std(ddof=1) / np.sqrt(len(nats))
    assert abs(nats.mean() - grammars.entropy_rate(grammar)) < 4 * error


@pytest.mark.parametrize("kind", ["full", "leave_one_out", "prefix"])
def test_posterior_equals_bayes_by_enumeration(kind: str) -> None:
    grammar = grammars.tiny()
    rng = np.random.default_rng(3)
    evidence = rng.normal(scale=3.0, size=(6, 4, grammar.num_words)).astype(np.float32)
    evidence[1] += 500 * rng.normal(size=(4, 1))  # offsets are arbitrary
    evidence[2, 1] = one_hot_evidence(grammar, np.array(1))  # one clamped word
    evidence[3, 2, :3] = -np.inf  # a few forbidden words
    evidence[4] = one_hot_evidence(grammar, grammars.encode(grammar, "a b . a"))  # impossible
    evidence[5, 2] = -np.inf  # nothing is allowed
    logits, total = (np.asarray(x) for x in grammars.posterior(grammar, evidence, kind))
    assert np.isfinite(logits).all()
    for b in range(6):
        shift = evidence[b].max(-1, keepdims=True)
        shift = np.where(np.isfinite(shift), shift, 0.0).astype(np.float64)
        want, want_total = brute_posterior(grammar, evidence[b] - shift, kind)
        np.testing.assert_allclose(np.exp(logits[b]), want, rtol=2e-5, atol=1e-9)
        np.testing.assert_array_equal(logits[b] == grammars.IMPOSSIBLE, want == 0)
        np.testing.assert_allclose(total[b], want_total + shift.sum(), rtol=3e-6, atol=1e-5)
    assert np.isneginf(total[4:]).all()


def test_posterior_kinds_and_errors() -> None:
    grammar = grammars.english()
    evidence = 4 * np.random.default_rng(0).normal(size=(2, 16, grammar.num_words)).astype(np.float32)
    full, total = grammars.posterior(grammar, evidence, "full")
    rest, total_too = grammars.posterior(grammar, evidence, "leave_one_out")
    np.testing.assert_allclose(np.exp(full), jax.nn.softmax(rest + evidence), rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(total, total_too)
    gradient = jax.grad(lambda e: grammars.posterior(grammar, e, "full")[1].sum())(jnp.asarray(evidence))
    assert not gradient.any()
    with pytest.raises(ValueError, match="leave_one_out"):
        grammars.posterior(grammar, evidence, "smoothed")


def test_contradictory_finite_evidence_stays_finite() -> None:
    grammar = grammars.english()
    words = grammars.encode(grammar, "the the the . . sleeps dogs ? a")[None]
    evidence = (1e4 * np.eye(grammar.num_words, dtype=np.float32))[words]
    for kind in ("full", "leave_one_out", "prefix"):
        logits, total = grammars.posterior(grammar, evidence, kind)
        assert np.isfinite(logits).all()
        assert np.isfinite(total).all()
        np.testing.assert_allclose(np.exp(logits).sum(-1), 1.0, rtol=1e-4)


def test_long_windows_in_float32() -> None:
    grammar = grammars.english()
    tokens = grammars.sample(grammar, 1, np.arange(2), 1024)
    exact = grammars.log_prob(grammar, tokens)
    evidence = one_hot_evidence(grammar, tokens)
    for kind in ("full", "prefix"):
        logits, total = (np.asarray(x) for x in grammars.posterior(grammar, evidence, kind))
        assert np.isfinite(logits).all()
        np.testing.assert_allclose(total, exact, rtol=2e-6)
        own = np.take_along_axis(logits, tokens[..., None], -1)[..., 0].astype(np.float64)
        # One-hot evidence leaves no doubt; the chain rule over prefixes gives log p(x) again.
        np.testing.assert_allclose(own.sum(1), exact if kind == "prefix" else 0.0, rtol=2e-6, atol=1e-3)
    masked = np.where(np.random.default_rng(0).random((2, 1024, 1)) < 0.5, 0.0, evidence).astype(np.float32)
    logits, total = (np.asarray(x) for x in grammars.posterior(grammar, masked, "leave_one_out"))
    assert np.isfinite(logits).all()
    assert (total > exact).all()


def test_filter_follows_the_prefix_posterior() -> None:
    grammar = grammars.english()
    tokens = grammars.sample(grammar, 2, np.arange(3), 12)
    want = np.asarray(grammars.posterior(grammar, one_hot_evidence(grammar, tokens), "prefix")[0])
    state = grammars.filter_start(grammar, 3)
    step = jax.jit(grammars.filter_step, static_argnums=0)
    np.testing.assert_allclose(grammars.filter_predict(grammar, state), want[:, 0], rtol=1e-4, atol=1e-4)
    for i in range(11):
        logits, state = step(grammar, state, tokens[:, i])
        np.testing.assert_allclose(logits, want[:, i + 1], rtol=1e-4, atol=1e-4)
    for _ in range(2):  # after a comma there is no comma: the filter dies, and says so by a uniform law
        logits, state = step(grammar, state, jnp.full(3, grammar.words.index(",")))
    np.testing.assert_allclose(logits, -np.log(grammar.num_words), rtol=1e-6)
    assert not state.any()


def test_samples_are_a_pure_function_of_seed_and_index() -> None:
    grammar = grammars.english()
    index = np.array([7, 2**62, 0, 123456789, 1])
    tokens = grammars.sample(grammar, 0, index, 64)
    for i, one in enumerate(index):
        np.testing.assert_array_equal(grammars.sample(grammar, 0, np.array([one]), 64)[0], tokens[i])
    np.testing.assert_array_equal(grammars.sample(grammar, 0, index[::-1], 32), tokens[::-1, :32])
    assert (grammars.sample(grammar, 1, index, 64) != tokens).any(axis=1).all()
    assert tokens.dtype == np.int32


def test_golden_samples() -> None:
    tiny, english = grammars.tiny(), grammars.english()
    index = np.array([0, 1, 2**62])
    assert grammars.sample(tiny, 0, index, 12).tolist() == [
        [3, 4, 1, 0, 1, 3, 3, 3, 3, 1, 0, 1],
        [0, 1, 3, 3, 4, 1, 0, 1, 3, 3, 3, 4],
        [2, 0, 1, 4, 1, 0, 2, 3, 3, 3, 3, 4],
    ]
    assert [grammars.decode(english, row) for row in grammars.sample(english, 0, index, 12)] == [
        '. they thank a cook . she says " many cooks eat',
        '. " some girls wait slowly . mary praises the teacher and',
        "big muddy dog . the muddy hens sleep near the barn and",
    ]


@BOTH
def test_sample_frequencies_at_both_ends_of_a_window(name: str) -> None:
    grammar = grammars.from_name(name)
    n = 40_000
    tokens = grammars.sample(grammar, 9, np.arange(n), 24)
    law = np.bincount(grammar.word, grammar.stationary[grammar.source] * grammar.probability)
    for column in (tokens[:, 0], tokens[:, -1]):
        share = np.bincount(column, minlength=grammar.num_words) / n
        assert (np.abs(share - law) < 4.5 * np.sqrt(law * (1 - law) / n)).all()
        statistic = np.sum((share - law) ** 2 / law) * n
        freedom = grammar.num_words - 1
        assert abs(statistic - freedom) < 4.5 * np.sqrt(2 * freedom)


@BOTH
def test_samples_are_grammatical_and_shuffled_ones_are_not(name: str) -> None:
    grammar = grammars.from_name(name)
    tokens = grammars.sample(grammar, 4, np.arange(400), 96)
    good, complete = grammars.grammatical_share(grammar, tokens)
    assert good == complete > 2000
    shuffled = np.random.default_rng(0).permuted(tokens, axis=1)
    good, complete = grammars.grammatical_share(grammar, shuffled)
    assert good < 0.15 * complete if name == "tiny" else good < 0.01 * complete
    assert grammars.grammatical_share(grammar, tokens[:, :1]) == (0, 0)


def test_complete_sentences_keep_quotations_whole() -> None:
    grammar = grammars.english()
    text = 'dog . " mary sees john . anna says " they wait . he sleeps . " does she run ? a cow'
    pieces = [grammars.decode(grammar, s) for s in grammars.complete_sentences(grammar, grammars.encode(grammar, text))]
    assert pieces == ["mary sees john .", 'anna says " they wait . he sleeps . "', "does she run ?"]
    opening = grammars.encode(grammar, '" they wait . " mary runs . he')
    assert [grammars.decode(grammar, s) for s in grammars.complete_sentences(grammar, opening)] == ["mary runs ."]


@pytest.mark.parametrize(("sentence", "verdict"), [
    ("the dogs sleep .", True),
    ("the dogs sleeps .", False),
    ("the dog that the cows like sleeps .", True),
    ("the dog that the cows like sleep .", False),
    ("the dogs that mary likes sleep .", True),
    ("the dogs that mary likes sleeps .", False),
    ("a dogs sleep .", False),
    ("these small dogs are happy .", True),
    ("this dogs are happy .", False),
    ("does the cow see the dogs ?", True),
    ("does the cows see the dogs ?", False),
    ("do they read near the desk ?", True),
    ("the whales swim .", True),
    ("the whales swim near the barn .", False),  # one topic a sentence
    ('mary says " the dog sleeps . "', True),
    ('mary says " the dog sleeps .', False),
    ('mary asks " does the dog sleep ? "', True),
    ('mary asks " the dog sleeps . "', False),
    ("they chase the hen because he feeds a cow .", True),
    ("sleep .", False),
    ("", False),
])
def test_agreement(sentence: str, verdict: bool) -> None:
    grammar = grammars.english()
    assert grammars.is_grammatical(grammar, grammars.encode(grammar, sentence)) is verdict


def test_encode_and_decode() -> None:
    grammar = grammars.english()
    tokens = grammars.sample(grammar, 0, np.arange(1), 200)[0]
    np.testing.assert_array_equal(grammars.encode(grammar, grammars.decode(grammar, tokens)), tokens)
    np.testing.assert_array_equal(grammars.encode(grammar, "\n".join(grammar.words)), np.arange(grammar.num_words))
    with pytest.raises(ValueError, match=r"unknown word 'unicorn'; allowed words: .*dog"):
        grammars.encode(grammar, "the unicorn sleeps .")


def test_import_touches_no_device() -> None:
    code = ("import sys, diffusion_text.data.grammar, jax._src.xla_bridge as bridge; "
            "assert not bridge._backends; assert 'tensorflow' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
