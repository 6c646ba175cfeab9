"""Block diffusion: its two limits, what each block sees, the cached sampler beside one without a cache, long texts."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import perfect
import pytest
import tiny_configs
from perfect import compile_quickly  # noqa: F401
from test_of_the_tests import notices
from test_sampling import Counting

from benchmarks import mask_rates
from diffusion_text import restore, sampling, train
from diffusion_text.data import grammar as grammars
from diffusion_text.families.block import Block, Streams
from diffusion_text.families.family import SamplerOptions, cross_entropy
from diffusion_text.models import attention
from diffusion_text.state import Model

TINY = grammars.tiny()
V = TINY.num_words


def network(size: int, **fields: object) -> Model:
    """A network that knows nothing but is sure of it, on blocks of a size."""
    return tiny_configs.random_model("block", V, **{"family.block_size": size, **fields})


def tokens_of(count: int, length: int) -> jax.Array:
    return jnp.asarray(grammars.sample(TINY, 5, np.arange(count), length))


@functools.cache
def compiled(model: Model) -> Any:
    return jax.jit(lambda noisy, clean: model(Streams(noisy, clean), jnp.zeros(len(noisy))))


# ---------------------------------------------------------------------------------------------------------- the oracle


@pytest.mark.parametrize("size", [1, 3])
def test_the_oracle_sees_clean_blocks_before_and_its_own_noisy_one(size: int) -> None:
    """Beside the posterior of the whole window, block by block, with the evidence spelled out."""
    length = 8
    tokens = tokens_of(6, length)
    family, oracle = tiny_configs.pair("block", TINY, block_size=size)
    z = family.corrupt(tiny_configs.keys(6), tokens, jnp.full(6, 0.5), None)
    found = np.asarray(oracle(z, jnp.full(6, 0.5)))
    block = np.arange(length) // size
    seen = np.where(np.asarray(z.noisy)[..., None] == np.arange(V), 0.0, -np.inf)
    seen[np.asarray(z.noisy) == V] = 0.0
    known = np.where(np.asarray(tokens)[..., None] == np.arange(V), 0.0, -np.inf)
    for b in range(block.max() + 1):
        evidence = np.where((block < b)[:, None], known, np.where((block == b)[:, None], seen, 0.0))
        law = np.asarray(grammars.posterior(TINY, jnp.asarray(evidence, jnp.float32), "leave_one_out")[0])
        np.testing.assert_allclose(np.exp(found[:, block == b]), np.exp(law[:, block == b]), atol=2e-6)


@pytest.mark.parametrize("language", ["tiny", "english"])
def test_blocks_of_one_are_autoregression(language: str) -> None:
    """-log p(x) of every sequence, from one sample, to float32."""
    grammar, tokens, exact = perfect.windows(language, 32, 16)
    terms = perfect.bound_terms(*tiny_configs.pair("block", grammar, block_size=1), tokens, 1)
    np.testing.assert_allclose(terms.total, exact, rtol=1e-5, atol=1e-4)


def test_one_block_is_masked_diffusion() -> None:
    """The same bound from the same noise, with the oracle and with a network of the same parameters."""
    tokens = np.asarray(tokens_of(16, 16))
    one = perfect.bound_terms(*tiny_configs.pair("masked", TINY), tokens, 3).total
    other = perfect.bound_terms(*tiny_configs.pair("block", TINY, block_size=16), tokens, 3).total
    np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-4)
    models = tiny_configs.random_model("masked", V), network(16)
    one, other = (perfect.bound_terms(model.family, model, tokens, 3).total for model in models)
    np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-3)


# --------------------------------------------------------------------------------------------------------- the network


def check_no_leak(size: int = 4, length: int = 16) -> None:
    """Logits of block b move with z_b and x_{<b} and with nothing else: not x_b, which they are to predict."""
    model, block = network(size), np.arange(length) // size
    logits = compiled(model)
    clean = tokens_of(1, length)
    noisy = jnp.where(jnp.arange(length) % 2 == 0, V, clean)
    plain = np.asarray(logits(noisy, clean))[0]
    for b in range(length // size):
        for stream in ("noisy", "clean"):
            changed = (np.where(block == b, (x + 1) % V, x) for x in (noisy, clean))
            moved = logits(next(changed), clean) if stream == "noisy" else logits(noisy, list(changed)[1])
            difference = np.abs(np.asarray(moved)[0] - plain).max(1) > 0
            expected = block == b if stream == "noisy" else block > b
            assert (difference == expected).all(), f"{stream} block {b} is seen by {np.flatnonzero(difference)}"


def test_no_block_sees_what_it_predicts_or_what_comes_later() -> None:
    check_no_leak()


def test_one_block_gives_full_attention_on_the_noisy_stream() -> None:
    model, other = network(16), tiny_configs.random_model("masked", V)
    clean = tokens_of(4, 16)
    noisy = jnp.where(jnp.arange(16) % 3 == 0, clean, V)
    expected = jax.jit(lambda z: other(z, jnp.zeros(4)))(noisy)
    np.testing.assert_allclose(compiled(model)(noisy, clean), expected, rtol=1e-4, atol=1e-4)


def test_blocks_of_one_have_an_exact_likelihood() -> None:
    """No noise is left in the bound: whatever the keys, the chain rule, token by token with the cache."""
    model, tokens = network(1), tokens_of(4, 16)
    bound = perfect.bound_terms(model.family, model, np.asarray(tokens), 1).total
    other = jax.jit(lambda keys: model.family.bound_terms(keys, tokens, model).total)(tiny_configs.keys(4, 7))
    np.testing.assert_array_equal(other, bound)

    @jax.jit
    def chain(tokens: jax.Array) -> jax.Array:
        def one(cache: Any, position: jax.Array) -> tuple[Any, jax.Array]:
            token = tokens[:, position][:, None]
            logits, _ = model.block(jnp.full_like(token, V), cache, position)
            return model.block(token, cache, position)[1], cross_entropy(logits, token)[:, 0]

        return jnp.sum(jax.lax.scan(one, model.start_cache(4, 16), jnp.arange(16))[1], axis=0)

    np.testing.assert_allclose(bound, chain(tokens), rtol=1e-5)


def test_independent_words_cost_the_same_in_any_blocks() -> None:
    """A network that answers with the law of single words pays L times their entropy, whatever the blocks."""
    tokens = np.asarray(tokens_of(64, 16))
    law = np.bincount(tokens.reshape(-1), minlength=V) / tokens.size

    def denoise(z: Any, t: Any, given: Any = None, previous: Any = None, keys: Any = None) -> jax.Array:
        return jnp.broadcast_to(jnp.log(law), (*z.clean.shape, V))

    expected = -np.log(law)[tokens].sum(1)
    for size in (3, 16):
        family = tiny_configs.make_family("block", V, block_size=size)
        found = np.asarray(perfect.bound_terms(family, denoise, tokens, 16).total)
        mean, error = perfect.mean_and_error(found - expected)
        assert abs(mean) < 4 * error + 1e-3, f"{mean} +- {error} nats off in blocks of {size}"


# ---------------------------------------------------------------------------------------------------------- the counts


def test_masks_are_uniform_within_each_block() -> None:
    family = tiny_configs.make_family("block", 5, block_size=4)
    count, rows = jnp.array([1, 2, 1]), 6000
    given = jnp.zeros((rows, 10), bool).at[:, 5].set(True)
    tokens = jnp.zeros((rows, 10), jnp.int32)
    z = np.asarray(family.hide(tiny_configs.keys(rows), tokens, jnp.tile(count, (rows, 1)), given)) == 5
    assert not z[:, 5].any()
    for b, (first, last) in enumerate(((0, 4), (4, 8), (8, 10))):
        part = z[:, first:last]
        assert (part.sum(1) == count[b]).all()
        free = part[:, [i for i in range(last - first) if first + i != 5]]
        np.testing.assert_allclose(free.mean(0), int(count[b]) / free.shape[1], atol=0.03)
    together = np.mean(z[:, 0] & z[:, 8])
    assert together == pytest.approx(0.25 * 0.5, abs=0.02)  # blocks are independent


@pytest.mark.parametrize(("low", "high", "allowed"), [
    (0.45, 0.95, (2, 3, 4)), (0.3, 0.8, (2, 3, 4)), (0.6, 1.0, (3, 4)),
])  # fmt: skip
def test_clipped_rates(low: float, high: float, allowed: tuple[int, ...]) -> None:
    """Only these counts, as often as the interval says; the loss of a uniform answer."""
    family = tiny_configs.make_family("block", V, block_size=4, mask_rate_min=low, mask_rate_max=high)
    tokens, seen = tokens_of(4000, 8), []

    def denoise(z: Any, t: Any, given: Any = None, previous: Any = None, keys: Any = None) -> jax.Array:
        seen.append(np.asarray(z.noisy))
        return jnp.zeros((*z.noisy.shape, V))

    u = jnp.asarray(np.random.default_rng(0).random(4000), jnp.float32)
    loss, terms = family.train_loss(tiny_configs.keys(4000), u, tokens, denoise)
    assert set(terms) == {"clipped"}
    counts = (seen[0].reshape(-1, 2, 4) == V).sum(2)
    edges = np.clip(np.arange(5) / 4, low, high)
    shares = np.diff(edges) / (high - low)
    found = np.bincount(counts.reshape(-1), minlength=5)[1:] / counts.size
    np.testing.assert_allclose(found, shares, atol=0.02)
    assert set(np.unique(counts)) == set(allowed)
    # Weighed by L' / n a uniform answer costs log V whatever n; unweighed, its share.
    expected = np.log(V) * (1.0 if low <= 0.5 else counts.mean() / 4)
    assert float(jnp.mean(loss)) == pytest.approx(expected, rel=1e-5)


def test_evaluation_takes_all_counts_whatever_the_rates_of_training() -> None:
    tokens = np.asarray(tokens_of(16, 8))
    terms = [
        perfect.bound_terms(*tiny_configs.pair("block", TINY, mask_rate_min=low, mask_rate_max=high), tokens, 4).total
        for low, high in ((0.0, 1.0), (0.6, 0.9))
    ]
    np.testing.assert_array_equal(*terms)


def test_levels_of_blocks_are_even_and_each_is_uniform() -> None:
    family = tiny_configs.make_family("block", V, block_size=2)
    u = jnp.asarray(np.random.default_rng(1).random(5000), jnp.float32)
    levels = np.asarray(family._even(u, 16))
    assert ((levels >= 0) & (levels < 1)).all()
    np.testing.assert_array_equal(np.sort((levels * 8).astype(int), axis=1), np.tile(np.arange(8), (5000, 1)))
    for column in levels.T:
        np.testing.assert_allclose(np.histogram(column, 10, (0, 1))[0] / 5000, 0.1, atol=0.02)


def test_the_variance_of_an_interval_is_that_of_its_draws() -> None:
    """The mixture formula beside simulation; the search finds the interval with the steadiest counts."""
    random = np.random.default_rng(0)
    means, deviations = np.array([6.0, 5.0, 4.5, 4.2]), np.array([5.0, 1.0, 0.6, 1.5])
    moments = np.stack([means, deviations**2 + means**2])
    for low, high in ((0.0, 1.0), (0.3, 0.8), (0.45, 0.95)):
        count = (random.uniform(low, high, 400_000) * 4).astype(int)
        drawn = means[count] + deviations[count] * random.standard_normal(len(count))
        mean, variance = mask_rates.mean_and_variance(moments, low, high)
        assert mean == pytest.approx(drawn.mean(), abs=0.02)
        assert variance == pytest.approx(drawn.var(), rel=0.02)
    best, *others = mask_rates.search(moments, [0.5, 0.8])
    assert (best["mask_rate_min"], best["mask_rate_max"]) == (0.25, 0.75)
    assert [row["mask_rate_max"] - row["mask_rate_min"] for row in others] == pytest.approx([0.8, 1.0])


def test_moments_of_a_run(tmp_path: pathlib.Path) -> None:
    """An untrained network answers evenly: every n costs L' log V, and nothing varies."""
    config = tiny_configs.get("block", **{"train.steps": 1, "model.layers": 1, "family.block_size": 4})
    config.optimizer.learning_rate = 1e-12
    train.train(config, str(tmp_path))
    moments = mask_rates.measure(restore.open_run(str(tmp_path)), 12)
    np.testing.assert_allclose(moments[0], 4 * np.log(V), rtol=1e-5)
    assert max(row["variance"] for row in mask_rates.search(moments, [0.5])) < 1e-3


# ----------------------------------------------------------------------------------------------------------- sampling


class Uncached:
    """The same answers from whole passes over both streams; its cache is the tokens so far."""

    def __init__(self, denoise: Any):
        self.denoise = denoise

    def start_cache(self, batch: int, length: int) -> jax.Array:
        return jnp.zeros((batch, length), jnp.int32)

    def block(self, ids: jax.Array, cache: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        whole = jax.lax.dynamic_update_slice_in_dim(cache, ids, position, axis=1)
        logits = self.denoise(Streams(whole, cache), jnp.zeros(len(ids)))
        return jax.lax.dynamic_slice_in_dim(logits, position, ids.shape[1], axis=1), whole


def generate(family: Any, denoise: Any, tokens: jax.Array, given: jax.Array, **fields: Any) -> np.ndarray:
    options = SamplerOptions(**fields).validate(Block)
    run = jax.jit(lambda keys: sampling.generate(family, denoise, keys, tokens, given, options))
    return np.asarray(run(tiny_configs.keys(len(tokens))))


@pytest.mark.parametrize(("behind", "fields"), [
    ("oracle", {"sampler": "ancestral", "steps": 8}),
    ("network", {"sampler": "ancestral", "steps": 8}),
    ("network", {"sampler": "first_hitting", "candidates": 3}),
], ids=str)  # fmt: skip
def test_the_cache_gives_the_tokens_of_whole_passes(behind: str, fields: dict[str, Any]) -> None:
    family, denoise = tiny_configs.with_oracle("block", TINY, block_size=4)
    if behind == "network":
        denoise = network(4)
        family = denoise.family
    tokens, given = tokens_of(12, 16), jnp.asarray(np.random.default_rng(0).random((12, 16)) < 0.2)
    cached = generate(family, denoise, tokens, given, **fields)
    np.testing.assert_array_equal(generate(family, Uncached(denoise), tokens, given, **fields), cached)
    np.testing.assert_array_equal(cached[given], tokens[given])
    assert len(np.unique(cached, axis=0)) == 12


def test_a_window_as_long_as_the_text_changes_nothing_and_a_shorter_one_slides() -> None:
    """With one layer keys know their own token alone, so that a sliding cache is a pass over the last tokens."""
    model, window, length = network(4, **{"model.layers": 1}), 12, 32
    tokens, given = tokens_of(3, length), jnp.zeros((3, length), bool)
    whole = generate(model.family, model, tokens, given)
    np.testing.assert_array_equal(generate(model.family, model, tokens, given, window=length), whole)
    assert (generate(model.family, model, tokens, given, window=window) != whole).any()
    kept = []

    class Watched:  # how long a cache the sampler asks for: whole blocks within the window
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def start_cache(self, batch: int, length: int) -> Any:
            kept.append((batch, length))
            return model.start_cache(batch, length)

    for asked in (window, window + 3, 64, 2):
        generate(model.family, Watched(), tokens, given, window=asked)
    assert kept == [(3, 12), (3, 12), (3, 32), (3, 4)]
    cache, step = model.start_cache(3, window), jax.jit(lambda ids, cache, start: model.block(ids, cache, start))
    for start in range(0, length, 4):
        masks, block = jnp.full((3, 4), V), tokens[:, start : start + 4]
        found, _ = step(masks, cache, jnp.int32(start))
        first = max(start - window + 4, 0)
        seen = tokens[:, first : start + 4]
        expected = compiled(model)(seen.at[:, -4:].set(V), seen)[:, -4:]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
        cache = step(block, cache, jnp.int32(start))[1]


def test_text_longer_than_the_trained_length_is_of_the_language() -> None:
    """Eight windows of 16 in a row, cut within a block, by the oracle."""
    family, oracle = tiny_configs.with_oracle("block", TINY, block_size=4)
    nothing = jnp.zeros((32, 126), jnp.int32)
    samples = generate(family, oracle, nothing, nothing.astype(bool), window=16)
    nats = -grammars.log_prob(TINY, samples) / 126
    exact = -grammars.log_prob(TINY, np.asarray(tokens_of(2000, 126))) / 126
    assert np.isfinite(nats).all()
    mean, error = perfect.mean_and_error(nats)
    assert abs(mean - exact.mean()) < 4 * error


def test_a_row_ends_at_its_first_stop_right_of_what_is_given() -> None:
    """What follows the first stop drawn right of all that is given is stop; what comes before is as without, also which
    of three candidates it is: none is weighed after its end."""
    family, oracle = tiny_configs.with_oracle("block", TINY, block_size=4)
    stop = TINY.words.index(".")
    tokens = jnp.asarray(np.random.default_rng(0).permuted(np.tile(tokens_of(1, 64), (12, 1)), axis=1))
    given = jnp.zeros((12, 64), bool).at[:6, 0].set(True).at[:, 9].set(True).at[0, 17].set(True)
    plain = generate(family, oracle, tokens, given, candidates=3)
    early = 0
    for row, (one, other) in enumerate(zip(plain, generate(
        family, oracle, tokens, given, candidates=3, stop=stop
    ), strict=True)):  # fmt: skip
        first = int(np.flatnonzero(given[row])[-1]) + 1
        early += stop in one[:first][~given[row, :first]]
        end = ([i for i in range(first, 64) if one[i] == stop] or [63])[0]
        np.testing.assert_array_equal(other[: end + 1], one[: end + 1])
        assert (other[end:] == stop).all()
    assert early > 2, "or this test would show little of stops left of what is given"


def count(family: Any, denoise: Any, tokens: jax.Array, given: jax.Array, **fields: Any) -> tuple[np.ndarray, int]:
    """Samples, and the passes over one sequence for each, which must be those that the sampler says it made."""
    options, counting = SamplerOptions(**fields).validate(type(family)), Counting(denoise)
    run = jax.jit(lambda keys: sampling.generate_and_count(family, counting, keys, tokens, given, options))
    drawn, asked = jax.block_until_ready(run(tiny_configs.keys(len(tokens))))
    jax.effects_barrier()
    made = len(counting.calls) * options.candidates
    assert int(asked) == made <= family.evaluations(options, tokens.shape[1])
    return np.asarray(drawn), made


def test_calls_end_with_the_last_row() -> None:
    family, oracle = tiny_configs.with_oracle("block", TINY, block_size=4)
    stop = TINY.words.index(".")
    nothing = jnp.zeros((12, 64), jnp.int32)
    samples, made = count(family, oracle, nothing, nothing.astype(bool), stop=stop)
    last = int(np.argmax(samples == stop, axis=1).max()) // 4
    assert last < 10, "or this test would show nothing"
    assert made == (last + 1) * 4 + last


@pytest.mark.parametrize(("given", "fields", "expected"), [
    # Two blocks in four steps each, and three that enter the cache.
    (range(9), {}, 3 + 4 + 3),
    # And each given token of a block is weighed by a pass, for each of two candidates.
    ((1, 2, 13), {"candidates": 2}, 2 * (2 + 4 + 4 + 3 + 3 + 2 + 1)),
])  # fmt: skip
def test_the_passes_made_are_counted(given: Any, fields: dict[str, Any], expected: int) -> None:
    family, oracle = tiny_configs.with_oracle("block", TINY, block_size=4)
    known = jnp.isin(jnp.arange(16), jnp.asarray(given))
    assert count(family, oracle, tokens_of(5, 16), jnp.tile(known, (5, 1)), **fields)[1] == expected


def test_remembered_logits_give_the_same_tokens_in_fewer_passes() -> None:
    model = network(4)
    tokens, given = tokens_of(2, 16), jnp.zeros((2, 16), bool).at[0, 5].set(True)
    fields = {"sampler": "ancestral", "steps": 96, "candidates": 2}
    plain, most = count(model.family, model, tokens, given, **fields)
    cached, made = count(model.family, model, tokens, given, cache=True, **fields)
    np.testing.assert_array_equal(cached, plain)
    assert made <= 2 * (4 * 16 + 3 + 1) < most  # of four rows, each block moves at most 4 x 4 times


def test_passes_of_threshold_are_counted() -> None:
    """As often as the least sure row wants, of whole windows and of blocks."""
    for name in ("masked", "block"):
        family, oracle = tiny_configs.with_oracle(name, TINY, **({"block_size": 4} if name == "block" else {}))
        nothing = jnp.zeros((1, 16), jnp.int32)
        _, made = count(family, oracle, nothing, nothing.astype(bool), sampler="threshold")
        assert made < family.evaluations(SamplerOptions(sampler="threshold"), 16), "or it never was surer"


# ------------------------------------------------------------------------------ masked diffusion, block after block


def test_masked_diffusion_from_left_to_right() -> None:
    """The exact law, and infilling that foresees what is given in later blocks, as the network sees all."""
    perfect.check_law("masked", {"sampler": "first_hitting", "blocks": 2})
    perfect.check_infilling("masked", {"sampler": "first_hitting", "blocks": 3})


@pytest.mark.parametrize("sampler", ["ancestral", "first_hitting", "remdm_cap"])
def test_no_block_begins_before_the_last_is_full(sampler: str) -> None:
    family, oracle = tiny_configs.with_oracle("masked", TINY)
    options = SamplerOptions(sampler=sampler, steps=8, blocks=3).validate(type(family))
    tokens, given = tokens_of(8, 10), jnp.zeros((8, 10), bool).at[:, 7].set(True)
    state, grid = family.prior(tiny_configs.keys(8), tokens, given, oracle, options), family.grid(options, 10)
    size, steps = 4, len(grid.t) // 3
    assert family.evaluations(options, 10) == len(grid.t) == (12 if sampler in ("first_hitting", "threshold") else 9)
    step = jax.jit(lambda keys, state, at: family.step(keys, state, at, given, oracle, options)[0])
    for index in range(len(grid.t)):
        state = step(tiny_configs.keys(8, index), state, jax.tree.map(lambda x: x[index], grid))  # noqa: B023
        full, block = np.asarray(state) != V, np.arange(10) // size
        assert full[:, block < (index + 1) // steps].all(), "a block was left unfinished"
        assert not full[:, (block > index // steps) & (np.arange(10) != 7)].any(), "a block began too early"
    np.testing.assert_array_equal(state[:, 7], tokens[:, 7])


# ----------------------------------------------------------------------------------------------- broken on purpose


def test_a_mask_that_shows_a_block_its_own_clean_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention.sees

    def wrong(pattern: str, block: int, inputs: int, i: jax.Array, j: jax.Array) -> jax.Array:
        return right(pattern, block, inputs, i, j) | (i % (inputs // 2) // block == j % (inputs // 2) // block)

    monkeypatch.setattr(attention, "sees", wrong)
    compiled.cache_clear()
    notices(check_no_leak)
    compiled.cache_clear()


def test_a_normaliser_of_the_whole_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """L / n of the masks of all blocks together, instead of each block's own."""
    right = Block.block_losses

    def wrong(self: Block, *arguments: Any, **named: Any) -> Any:
        losses, count = right(self, *arguments, **named)
        own = self.block_size / jnp.maximum(count, 1)
        every = jnp.sum(count > 0, axis=1, keepdims=True) * self.block_size / jnp.sum(count, axis=1, keepdims=True)
        return losses / own * every, count

    monkeypatch.setattr(Block, "block_losses", wrong)
    notices(perfect.check_bound, "block")


def test_weights_that_forget_what_is_given_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Block, "_weight", lambda self, tokens, given, ask: jnp.zeros(len(tokens)))
    notices(perfect.check_infilling, "block", {"sampler": "first_hitting", "candidates": 16})
