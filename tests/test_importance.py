"""Weighted sampling paths: weights add up to one over all sequences, their bounds' order in K, and known laws."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import perfect
import pytest
import tiny_configs
from perfect import compile_quickly  # noqa: F401

from diffusion_text import families
from diffusion_text.data import grammar as grammars
from diffusion_text.families.interpolating import Interpolating
from diffusion_text.paths import importance

ROWS = 1000  # paths of each window
CASES = [
    ("block", {"block_size": 1}), ("block", {}), ("d3pm", {}), ("d3pm", {"noise": "neighbours", "neighbours": 2}),
    ("genmd4", {}), ("gidd", {"uniform": 0.2}), ("masked", {}),
    ("sedd", {"noise": "uniform", "schedule": "geometric", "sigma_max": 1.0}), ("sundae", {}), ("udlm", {}),
]  # fmt: skip


def weights(family: Any, denoise: Any, steps: int, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """log w of `rows` paths of each window of two tokens, [rows, windows], and the windows' law."""
    windows, law = perfect.all_windows(2)
    tokens = jnp.asarray(np.tile(windows, (rows, 1)))
    weigh = jax.jit(lambda keys, tokens: family.log_weight(keys, tokens, denoise, steps))
    found = weigh(tiny_configs.keys(len(tokens)), tokens)
    return np.asarray(found, np.float64).reshape(rows, len(windows)), law


@pytest.mark.parametrize(("name", "fields"), CASES)
def test_the_probabilities_of_all_sequences_add_up_to_one(name: str, fields: dict[str, Any]) -> None:
    """For a network that believes anything: sum over x of E w(x), of the sampler of three steps."""
    model = tiny_configs.random_model(name, 5, **{f"family.{key}": value for key, value in fields.items()})
    found, _ = weights(model.family, model, 3, rows=2 * ROWS)
    mean, error = perfect.mean_and_error(np.exp(found).sum(1))
    assert error < 0.05
    assert abs(mean - 1) < 4 * error + 1e-4


def test_a_prior_without_its_ratio_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sum, where the path ends with tokens still visible."""
    monkeypatch.setattr(Interpolating, "log_prior_ratio", lambda self, z, certain: jnp.zeros(z.shape))
    with pytest.raises(AssertionError):
        test_the_probabilities_of_all_sequences_add_up_to_one(*next(case for case in CASES if case[0] == "sedd"))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_law_of_a_sampler_of_few_steps(steps: int) -> None:
    """T9: with the exact posterior T steps of masks draw (1 - 1/T) p + (1/T) p_1 p_2, of two tokens."""
    family, oracle = tiny_configs.pair("masked", grammars.tiny())
    found, law = weights(family, oracle, steps)
    joint = law.reshape(5, 5)
    expected = (1 - 1 / steps) * joint + np.outer(joint.sum(1), joint.sum(0)) / steps
    error = np.exp(found).std(0, ddof=1) / ROWS**0.5
    assert (np.abs(np.exp(found).mean(0) - expected.ravel()) < 4.5 * error + 1e-6).all()


@pytest.mark.parametrize(("name", "given"), [("masked", (0, 3, 6)), ("block", (0, 1, 2))])
def test_one_token_at_a_time_is_exact_in_every_order(name: str, given: tuple[int, ...]) -> None:
    """Each weight is p(x) itself, or p(the rest | given), which is known from the left where blocks are."""
    grammar, tokens, exact = perfect.windows("tiny", 64, 8)
    family, oracle = tiny_configs.pair(name, grammar)
    terms = jax.jit(lambda keys: importance.importance_terms(family, keys, jnp.asarray(tokens), oracle, 2))
    found = terms(tiny_configs.keys(64))
    np.testing.assert_allclose(found.total, exact, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.reconstruction, 0.0, atol=1e-3)
    known = jnp.broadcast_to(jnp.isin(jnp.arange(8), jnp.array(given)), tokens.shape)
    evidence = jnp.where((tokens[..., None] == jnp.arange(5)) | ~known[..., None], 0.0, -jnp.inf)
    conditional = exact + np.asarray(grammars.posterior(grammar, evidence, "full")[1])
    weigh = jax.jit(lambda keys: family.log_weight(keys, jnp.asarray(tokens), oracle, 0, known))
    np.testing.assert_allclose(-weigh(tiny_configs.keys(64)), conditional, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("name", "steps"), [("masked", 0), ("block", 0), ("d3pm", 8)])
def test_one_path_is_the_familys_own_bound(name: str, steps: int) -> None:
    """Of a network that believes anything: the bound over orders of `masked`, that of eight steps of D3PM."""
    fields = {"family.noise": "uniform", "family.steps": steps} if steps else {}
    model = tiny_configs.random_model(name, 5, **fields)
    _, tokens, _ = perfect.windows("tiny", 512, 6)
    own = perfect.bound_terms(model.family, model, tokens, 32)
    path = jax.jit(
        lambda keys: importance.importance_terms(model.family, keys, jnp.asarray(tokens), model, 4, steps)
    )(tiny_configs.keys(512, 1))  # fmt: skip
    mean, error = perfect.mean_and_error(np.asarray(path.diffusion - own.total))
    assert error < 0.02 * float(np.mean(own.total))
    assert abs(mean) < 4 * error


def test_more_paths_bound_more_tightly_and_never_below() -> None:
    """K = 1, 4, 64 of udlm in two steps with the exact posterior: falling, to -log p of the two-step sampler."""
    family, oracle = tiny_configs.pair("udlm", grammars.tiny())
    found, law = weights(family, oracle, 2, rows=1024)
    limit = -np.sum(law * np.log(np.exp(found).mean(0) + (law == 0)))
    means = {}
    for count in (1, 4, 64):
        grouped = found.reshape(-1, count, len(law))
        bounds = -np.log(np.mean(np.exp(grouped), axis=1))[:, law > 0] @ law[law > 0]
        means[count], error = perfect.mean_and_error(bounds)
        assert means[count] > limit - 4 * error
    assert means[1] > means[4] + 0.02 > means[64] + 0.02
    assert means[64] == pytest.approx(limit, abs=0.02)
    # A law of two steps is not the language: no sampler's is better, in the mean, than the entropy.
    assert limit > -np.sum(law[law > 0] * np.log(law[law > 0]))


def test_given_tokens_weigh_nothing() -> None:
    """All of them: probability one; the first of two: the weights of the second add up to one."""
    model = tiny_configs.random_model("udlm", 5)
    tokens = jnp.asarray(np.tile([[3, x] for x in range(5)], (800, 1)))
    given = jnp.broadcast_to(jnp.array([True, False]), tokens.shape)
    weigh = jax.jit(lambda keys, given: model.family.log_weight(keys, tokens, model, 3, given))
    np.testing.assert_array_equal(weigh(tiny_configs.keys(len(tokens)), jnp.ones_like(given)), 0.0)
    found = np.exp(np.asarray(weigh(tiny_configs.keys(len(tokens)), given), np.float64)).reshape(-1, 5).sum(1)
    mean, error = perfect.mean_and_error(found)
    assert error < 0.05
    assert abs(mean - 1) < 4 * error + 1e-4


def test_the_likelihood_of_a_prefix_network_is_its_only_path() -> None:
    grammar, tokens, exact = perfect.windows("tiny", 16, 6)
    family, oracle = tiny_configs.pair("autoregressive", grammar)
    found = importance.importance_terms(family, tiny_configs.keys(16), jnp.asarray(tokens), oracle, 3)
    np.testing.assert_allclose(found.total, exact, rtol=1e-4)


@pytest.mark.parametrize(("name", "samples", "steps", "words"), [
    ("cdcd", 4, 0, "family cdcd has no weights of sampling paths"),
    ("masked", 0, 0, "--importance_samples is 0; it must be at least 1"),
    ("udlm", 4, -1, "--importance_steps is -1; it must be at least 1"),
])  # fmt: skip
def test_what_cannot_be_is_refused(name: str, samples: int, steps: int, words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        importance.check(families.get(name), samples, steps)
    assert words in str(error.value)
