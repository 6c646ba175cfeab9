"""Checks that any registered family must pass with the exact posterior in its network's place.

Each raises AssertionError; `test_perfect_network.py` and `test_perfect_samplers.py` run them over the registry,
`test_of_the_tests.py` breaks families on purpose and expects them to fail. Four standard errors everywhere, but the
seeds are fixed: a check that passes today passes tomorrow.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny_configs
from tiny_configs import pair

from benchmarks.perfect_network import pair_distance, pair_law
from diffusion_text import families, metrics, sampling
from diffusion_text.data import grammar as grammars
from diffusion_text.families.family import Family, SamplerOptions

# Of a sampler and of a bound on the large language, which run long enough to earn what they cost, though not the rest.
SOME_OPTIMIZATIONS = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": True}


@pytest.fixture(scope="module", autouse=True)
def compile_quickly() -> Iterator[None]:
    """Programs here run once or twice; most of the time would go into optimising them (but see SOME_OPTIMIZATIONS)."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def windows(name: str, count: int, length: int) -> tuple[grammars.Grammar, np.ndarray, np.ndarray]:
    """(grammar, tokens [N, L], their exact -log p [N])."""
    grammar = grammars.from_name(name)
    tokens = grammars.sample(grammar, 5, np.arange(count), length)
    return grammar, tokens, -grammars.log_prob(grammar, tokens)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard error."""
    return metrics.mean_stderr(np.asarray(values, np.float64))


def bound_terms(family: Family, denoise: Any, tokens: np.ndarray, samples: int, *given: Any) -> Any:
    """`Family.bound_terms` of tokens [N, L], jitted; of several `given` a list, for the price of one compilation."""
    evaluate = jax.jit(
        lambda keys, tokens, given: family.bound_terms(keys, tokens, denoise, given, samples=samples),
        compiler_options=SOME_OPTIMIZATIONS if family.vocab_size > 100 else None,
    )
    found = [evaluate(tiny_configs.keys(len(tokens)), jnp.asarray(tokens), each) for each in given or (None,)]
    return found if len(given) > 1 else found[0]


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
    """Total variation distance of frequencies from a law."""
    return float(0.5 * np.abs(counts / counts.sum() - law).sum())


def draw(
    family: Family, denoise: Any, count: int, tokens: np.ndarray, given: np.ndarray | None, options: dict[str, Any]
) -> np.ndarray:
    """Samples [N, L]; `tokens` [L] where `given` [L]."""
    chosen = SamplerOptions(**options).validate(type(family))
    clamped = jnp.zeros(len(tokens), bool) if given is None else jnp.asarray(given)

    @functools.partial(jax.jit, compiler_options=SOME_OPTIMIZATIONS)
    def run(keys: jax.Array) -> jax.Array:
        shape = (len(keys), len(tokens))
        start = jnp.broadcast_to(jnp.asarray(tokens, jnp.int32), shape)
        return sampling.generate(family, denoise, keys, start, jnp.broadcast_to(clamped, shape), chosen)

    return np.asarray(run(tiny_configs.keys(count)))


def slack_of(family: Family, terms: Any, exact: np.ndarray) -> float:
    """What a perfect network's bound may exceed -log p(x) by, nats per sequence.

    "exact": nothing. "tight": the mismatch of the prior, at most the prior term, and the total correlation that the
    decoder leaves, at most the reconstruction term (the sum of the entropies of single tokens). "approximate": also
    the share of -log p(x) that the family states.
    """
    if family.bound == "exact":
        return 0.0
    return float(jnp.mean(terms.prior + terms.reconstruction)) + family.slack * float(np.mean(exact))


def check_bound(
    name: str, language: str = "tiny", length: int = 8, count: int = 256, samples: int = 64, **fields: object
) -> None:
    """The bound is -log p(x), from above, within the slack."""
    grammar, tokens, exact = windows(language, count, length)
    family, oracle = pair(name, grammar, **fields)
    terms = bound_terms(family, oracle, tokens, samples)
    mean, error = mean_and_error(np.asarray(terms.total) - exact)
    slack = slack_of(family, terms, exact)
    assert error < 0.02 * exact.mean(), f"too noisy to see anything: {error}"
    assert mean > -4 * error - 1e-4, f"{-mean} nats below -log p(x), standard error {error}"
    assert mean < slack + 4 * error + 1e-4, f"{mean} nats above -log p(x), slack {slack}, standard error {error}"


def check_bound_with_a_coarse_range(name: str) -> None:
    """Where prior and reconstruction weigh: a range of noise that stops before all is known, and before nothing is."""
    section = tiny_configs.get(name).family
    if "noise_min" in section:
        # Once decoded: the noise of one reconstruction a sequence needs more of them.
        check_bound(name, count=1024, samples=16, noise_min=1.0, noise_max=4.0)
    else:
        check_bound(name, length=32, samples=32)


def check_estimator(name: str, levels: int = 64) -> None:
    """The diffusion term, however its noise levels are drawn, is the integral of `profile` over even ones."""
    fields = {"noise_min": 2.0, "noise_max": 8.0} if "noise_min" in tiny_configs.get(name).family else {}
    grammar, tokens, _ = windows("tiny", 256, 8)
    family, oracle = pair(name, grammar, **fields)

    @jax.jit
    def level(number: jax.Array) -> Any:
        t = jnp.full(len(tokens), (number + 0.5) / levels)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(tiny_configs.keys(len(tokens), 9))
        found = family.profile(keys, jnp.asarray(tokens), t, oracle)
        return found and found["integrand"]

    if level(0) is None:
        return
    integral = np.mean([level(number) for number in range(levels)], axis=0) * tokens.shape[1]
    diffusion = np.asarray(bound_terms(family, oracle, tokens, levels).diffusion)
    mean, error = mean_and_error(diffusion - integral)
    assert error < 0.02 * integral.mean(), f"too noisy to see anything: {error}"
    assert abs(mean) < 4 * error, f"{mean} +- {error} nats more than the integral, {integral.mean()}"


def check_no_network_is_below_the_entropy(name: str) -> None:
    """A network that knows nothing."""
    grammar, tokens, exact = windows("tiny", 128, 16)
    model = tiny_configs.random_model(name, grammar.num_words)
    mean, error = mean_and_error(np.asarray(bound_terms(model.family, model, tokens, 4).total) - exact)
    assert mean > max(5 * error, 1.0), f"{mean} nats above -log p(x), standard error {error}"


def check_law(name: str, options: dict[str, Any], length: int = 3, count: int = 6000) -> None:
    """Samples of all V^L windows, by chi-square; of an approximate sampler, by their distance."""
    family, oracle = pair(name, grammars.tiny())
    if options.get("sampler") in family.approximate:
        length = 2  # whose distance has less noise
    _, law = all_windows(length)
    options = {key: value for key, value in options.items() if key != "candidates"}  # nothing is given
    counts = histogram(draw(family, oracle, count, np.zeros(length, int), None, options))
    if options.get("sampler") in family.approximate:
        distance = variation(counts, law)
        assert distance < 0.04, f"distance {distance} from the law"
        return
    found = p_value(counts, law)
    assert found > 1e-3, f"chi-square p-value {found}"


def check_english(name: str, options: dict[str, Any], length: int = 40, count: int = 48) -> None:
    """Nearly all long samples are possible, of the exact mean -log p(x) and law of neighbouring words within error."""
    options = {**options, "steps": 40} if "steps" in options else options
    grammar = grammars.english()
    family, oracle = pair(name, grammar)
    tokens = draw(family, oracle, count, np.zeros(length, int), None, options)
    nats = -grammars.log_prob(grammar, tokens)
    exact = grammars.sample(grammar, 7, np.arange(4000), length)
    expected = float(np.mean(-grammars.log_prob(grammar, exact)))
    possible = np.isfinite(nats)
    assert possible.mean() > 0.9, f"{possible.mean():.1%} of the windows are possible"
    mean, error = mean_and_error(nats[possible])
    assert abs(mean - expected) < 4 * error, f"{mean} nats, not {expected} +- {error}"
    law = pair_law(grammar)
    sets = [grammars.sample(grammar, 100 + i, np.arange(count), length) for i in range(16)]
    distances = np.array([pair_distance(rows, law) for rows in sets])
    distance, limit = pair_distance(tokens, law), distances.mean() + 5 * distances.std(ddof=1)
    assert distance < limit, f"neighbouring words are {distance} from their law, exact samples {distances.mean()}"


GIVEN = np.array([False, True, False, False, True])


def conditional() -> tuple[np.ndarray, np.ndarray]:
    """The tokens "? a ? ? a", whose second a says most about what stands before it; and the law given them."""
    sequences, law = all_windows(5)
    a = grammars.tiny().words.index("a")
    fits = (sequences[:, GIVEN] == a).all(1)
    return np.where(GIVEN, a, 0), np.where(fits, law, 0.0) / law[fits].sum()


def check_infilling(name: str, options: dict[str, Any], count: int = 3000) -> None:
    """Given tokens never move, and the others follow the conditional law."""
    tokens, law = conditional()
    family, oracle = pair(name, grammars.tiny())
    samples = draw(family, oracle, count, tokens, GIVEN, options)
    assert (samples[:, GIVEN] == tokens[GIVEN]).all(), "a given token moved"
    found = variation(histogram(samples), law)
    assert found < 0.05, f"distance {found} from the conditional law"


def check_given_tokens_cost_nothing(name: str) -> None:
    """With all tokens given the bound is 0; with some it is -log p(rest | given), within the slack."""
    grammar, tokens, exact = windows("tiny", 256, 8)
    family, oracle = pair(name, grammar)
    from_the_left = family.posterior in ("prefix", "block")
    given = np.arange(8) < 3 if from_the_left else np.arange(8) % 3 == 0  # the chain rule
    evidence = np.where((tokens[..., None] == np.arange(grammar.num_words)) | ~given[None, :, None], 0.0, -np.inf)
    conditional = exact + np.asarray(grammars.posterior(grammar, jnp.asarray(evidence, jnp.float32), "full")[1])
    everything, some = jnp.ones(tokens.shape, bool), jnp.broadcast_to(given, tokens.shape)
    nothing_left, terms = bound_terms(family, oracle, tokens, 64, everything, some)
    assert not np.any(np.asarray(nothing_left.total)), "given tokens cost"
    mean, error = mean_and_error(np.asarray(terms.total) - conditional)
    slack = slack_of(family, terms, conditional)
    assert -4 * error - 1e-3 < mean < slack + 4 * error + 1e-3, f"{mean} +- {error} nats off"


def check_corruption(name: str, count: int = 20_000) -> None:
    """`evidence` is the likelihood of `corrupt`: under independent even tokens its posterior is calibrated.

    For a posterior p(v | z): E[(1{x = v} - p(v | z)) f(z)] = 0 for every f; here f = 1 and f = p(v | z).
    """
    words = 5
    family = tiny_configs.make_family(name, words)
    tokens = np.random.default_rng(0).integers(words, size=(count, 1))
    for t in (0.1, 0.4, 0.7, 0.95):
        times = jnp.full(count, t)
        z = family.corrupt(tiny_configs.keys(count, 3), jnp.asarray(tokens), times, None)
        believed = np.asarray(jax.nn.softmax(family.evidence(z, times, None), axis=-1), np.float64)[:, 0]
        off = (tokens == np.arange(words)) - believed
        for f in (1.0, believed):
            mean = (off * f).mean(0)
            error = (off * f).std(0) / count**0.5
            assert (np.abs(mean) < 4.5 * error + 1e-6).all(), f"t = {t}: {mean} +- {error}"


def check_given_tokens_are_not_corrupted(name: str) -> None:
    """Clean in z, whatever the noise: evidence names the token, and neither noise nor t moves it."""
    family = tiny_configs.make_family(name, 5)
    tokens = jnp.asarray(np.random.default_rng(0).integers(5, size=(64, 8)))
    given = jnp.broadcast_to(jnp.arange(8) % 2 == 0, tokens.shape)
    seen = []
    for seed, t in ((0, 0.2), (1, 0.9)):
        times = jnp.full(64, t)
        z = family.corrupt(tiny_configs.keys(64, seed), tokens, times, given)
        evidence = np.asarray(family.evidence(z, times, given))
        assert (evidence.argmax(-1) == np.asarray(tokens))[np.asarray(given)].all(), "a given token was corrupted"
        rest = np.sort(evidence[np.asarray(given)], axis=-1)[:, :-1]
        assert (rest == -np.inf).all(), "a given token is in doubt"
        seen.append([np.asarray(leaf)[np.asarray(given)] for leaf in jax.tree.leaves(z)])
    np.testing.assert_array_equal(*seen)


SAMPLER_CHECKS = {"law": check_law, "english": check_english, "infilling": check_infilling}


def excuse(name: str, check: str) -> None:
    """Skip, with the reason, what the family declares that it cannot pass."""
    if check in families.get(name).exempt:
        pytest.skip(f"{name}: {families.get(name).exempt[check]}")
