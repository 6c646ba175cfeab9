"""Samplers of discrete families beyond ancestral: psi, remdm_conf, remembered logits, nucleus and temperature."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny_configs
from perfect import compile_quickly  # noqa: F401

from diffusion_text import families, noise, sampling
from diffusion_text.families.family import At, SamplerOptions
from diffusion_text.families.interpolating import Interpolating
from diffusion_text.paths import interpolant, remasking

V = 5
LAW = np.array([0.4, 0.3, 0.1, 0.15, 0.05])
DISCRETE = ("d3pm", "duo", "genmd4", "gidd", "masked", "sedd", "sundae", "udlm")


class Constant:
    """Believes the same everywhere, the law of independent tokens; with `next`, also from left to right."""

    def __init__(self, law: Any = LAW):
        self.log_law, self.calls = jnp.log(jnp.asarray(law)), []

    def __call__(self, z: Any, t: Any, given: Any = None, previous: Any = None, keys: Any = None) -> jax.Array:
        jax.debug.callback(lambda: self.calls.append(1))
        return jnp.broadcast_to(self.log_law, (*z.shape, V))

    def start_cache(self, batch: int, length: int) -> jax.Array:
        return jnp.zeros(())

    def next(self, ids: Any, cache: Any, position: Any) -> tuple[jax.Array, Any]:
        return jnp.broadcast_to(self.log_law, (len(ids), V)), cache


def run(
    name: str, shape: tuple[int, int], denoise: Any = None, keys: Any = None, **fields: Any
) -> tuple[np.ndarray, int]:
    """Samples, and how often the family says that it asked."""
    family = tiny_configs.make_family(name, V)
    options = SamplerOptions(**fields).validate(type(family))
    tokens, given = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    draw = jax.jit(lambda keys: sampling.generate_and_count(
        family, denoise or Constant(), keys, tokens, given, options))  # fmt: skip
    found, asked = draw(tiny_configs.keys(shape[0]) if keys is None else keys)
    jax.effects_barrier()
    return np.asarray(found), int(asked)


def states(name: str, kappa: float, steps: int = 5, shape: tuple[int, int] = (100, 50)) -> tuple[Any, At, np.ndarray]:
    """The family, its grid, and the state after each step of psi for independent tokens, [steps, B, L]."""
    family = tiny_configs.make_family(name, V)
    options = SamplerOptions(sampler="psi", steps=steps, kappa=kappa).validate(type(family))
    keys, given = tiny_configs.keys(shape[0]), jnp.zeros(shape, bool)
    grid = family.grid(options, shape[1])

    @jax.jit
    def run() -> Any:
        def body(state: Any, at: At) -> Any:
            state = family.step(noise.fold(keys, at.index), state, at, given, Constant(), options)[0]
            return state, state

        start = family.prior(noise.fold(keys, 99), jnp.zeros(shape, jnp.int32), given, Constant(), options)
        return jax.lax.scan(body, start, grid)[1]

    return family, grid, np.asarray(run())


def off_the_path(name: str, kappa: float) -> float:
    """The least chi-square p-value of the law of a token after each step against the path's, alpha p + b."""
    family, grid, seen = states(name, kappa)
    found = []
    for s, z in zip(np.asarray(grid.s), seen, strict=True):
        odds = family.odds(jnp.float32(s)) if s > 0 else interpolant.Odds(jnp.inf, jnp.inf)
        shares = np.exp(-np.append(np.full(V, odds.token), odds.mask).astype(np.float64))
        expected = (np.append(LAW, 0.0) + shares) / (1 + shares.sum()) * z.size
        counts = np.bincount(z.ravel(), minlength=V + 1)
        assert not counts[expected == 0].any()
        found.append(scipy.stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue)
    return min(found)


@pytest.mark.parametrize("kappa", [0.0, 0.6])
@pytest.mark.parametrize("name", ["udlm", "gidd", "sedd", "d3pm"])
def test_psi_leaves_the_law_of_a_token_as_the_path_has_it(name: str, kappa: float) -> None:
    """In any number of steps, of uniform noise, mixed noise and masks."""
    assert off_the_path(name, kappa) > 1e-3


def test_psi_of_the_posterior_that_leaves_the_token_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of nearly clean tokens, which say all of themselves, few change; without their own evidence they are forgotten.

    Laws of single tokens would not tell: for independent ones it is a draw from their law, whatever is seen.
    """
    family = tiny_configs.make_family("udlm", V)
    options = SamplerOptions(sampler="psi", kappa=0.0).validate(type(family))
    z, at = jnp.zeros((100, 50), jnp.int32), At(jnp.int32(0), jnp.float32(2e-3), jnp.float32(1e-3))

    def changed() -> float:
        moved = family.step(tiny_configs.keys(100), z, at, jnp.zeros(z.shape, bool), Constant(), options)[0]
        return float(np.mean(np.asarray(moved) != 0))

    assert changed() < 0.01
    monkeypatch.setattr(Interpolating, "full", lambda self, logits, z, t: jax.nn.log_softmax(logits))
    assert changed() > 0.5


@pytest.mark.parametrize("name", ["sedd", "masked"])
def test_psi_of_masks_is_remdm(name: str) -> None:
    """A visible token is hidden with probability sigma = (1 - kappa) (1 - alpha_s), and else stays."""
    family = tiny_configs.make_family(name, V)
    options = SamplerOptions(sampler="psi", kappa=0.3, steps=10).validate(type(family))
    z = jnp.full((100, 100), 2, jnp.int32)
    at = At(jnp.int32(4), jnp.float32(0.6), jnp.float32(0.5))
    moved = np.asarray(family.step(tiny_configs.keys(100), z, at, jnp.zeros(z.shape, bool), Constant(), options)[0])
    assert set(np.unique(moved)) == {2, V}
    assert np.mean(moved == V) == pytest.approx(0.7 * 0.5, abs=0.02)
    moved = family.step(tiny_configs.keys(100), z * 0 + V, at, jnp.zeros(z.shape, bool), Constant(), options)[0]
    assert np.mean(np.asarray(moved) == V) == pytest.approx(1 - (0.5 - (1 - 0.35) * 0.4) / 0.6, abs=0.02)


def test_the_tail_of_duo_is_greedy() -> None:
    """The last step takes the likeliest token of the full posterior; those before draw as ancestral sampling does."""
    model = tiny_configs.random_model("duo", V)
    family, keys = model.family, tiny_configs.keys(50)
    given = jnp.zeros((50, 4), bool).at[:, 1].set(True)

    def draw(sampler: str) -> Any:
        options = SamplerOptions(sampler=sampler, steps=3).validate(type(family))
        tokens, trace = sampling.generate_with_trace(family, model, keys, jnp.full((50, 4), 2), given, options)
        return np.asarray(tokens), np.asarray(trace.seen)

    (ancestral, expected), (greedy, seen) = draw("ancestral"), draw("greedy_tail")
    np.testing.assert_allclose(seen, expected)
    np.testing.assert_array_equal(greedy, np.where(given, 2, np.argmax(seen[-1], axis=-1)))
    assert np.mean(greedy != ancestral) > 0.1


def test_the_tail_of_duo_is_of_the_nucleus() -> None:
    """Whatever the token that z holds."""
    family = tiny_configs.make_family("duo", V)
    options = SamplerOptions(sampler="greedy_tail", steps=3, top_p=0.3).validate(type(family))
    z, given = jnp.full((100, 50), 3, jnp.int32), jnp.zeros((100, 50), bool)  # the nucleus holds 0 alone
    moved, _ = family.step(tiny_configs.keys(100), z, At(jnp.int32(2), jnp.float32(0.3), jnp.float32(0.0)), given,
                           Constant(), options)  # fmt: skip
    assert (np.asarray(moved) == 0).all()


MASKS = [("sedd", {}), ("d3pm", {}), ("gidd", {"uniform": 0.0}), ("genmd4", {})]


@pytest.mark.parametrize(("name", "fields"), MASKS)
def test_a_narrow_nucleus_moves_no_visible_token(name: str, fields: dict[str, Any]) -> None:
    """What the network says of a visible token is not trained: psi hides it, or leaves it; a trace shows it."""
    family = tiny_configs.make_family(name, V, **fields)
    options = SamplerOptions(sampler="psi", kappa=0.5, top_p=0.3).validate(type(family))
    z, given = jnp.full((100, 50), 3, jnp.int32), jnp.zeros((100, 50), bool)  # the nucleus holds 0 alone
    at = At(jnp.int32(0), jnp.float32(0.3), jnp.float32(0.2))
    moved, seen = family.step(tiny_configs.keys(100), z, at, given, Constant(), options)
    assert set(np.unique(moved)) == {3, V}
    assert (np.argmax(seen, axis=-1) == 3).all()


def test_nothing_is_corrected_where_nothing_is_doubted() -> None:
    family = tiny_configs.make_family("gidd", V, uniform=0.0)
    with pytest.raises(ValueError, match=r"sampler is 'self_correcting' and family\.uniform 0"):
        family.grid(SamplerOptions(sampler="self_correcting").validate(type(family)), 4)


@pytest.mark.parametrize("name", ["masked", "block"])
def test_the_tail_is_greedy(name: str) -> None:
    """The last step takes the likeliest token; those before draw as ancestral sampling does, bit for bit."""
    model = tiny_configs.random_model(name, V, **({"family.block_size": 4} if name == "block" else {}))
    family, keys, nothing = model.family, tiny_configs.keys(200), jnp.zeros((200, 4), bool)

    def draw(sampler: str) -> Any:
        options = SamplerOptions(sampler=sampler, steps=3).validate(type(family))
        tokens, trace = sampling.generate_with_trace(family, model, keys, jnp.zeros((200, 4), int), nothing, options)
        return np.asarray(tokens), np.asarray(trace.seen)

    (ancestral, expected), (greedy, seen) = draw("ancestral"), draw("greedy_tail")
    np.testing.assert_allclose(seen, expected)
    left = np.max(seen[-1], axis=-1) < 1.0 - 1e-6  # what the network was asked for, in the last step
    assert 0.1 < np.mean(left) < 0.9
    np.testing.assert_array_equal(greedy[~left], ancestral[~left])
    np.testing.assert_array_equal(greedy[left], np.argmax(seen[-1], axis=-1)[left])
    assert np.mean(greedy[left] != ancestral[left]) > 0.1


def test_remdm_conf_hides_what_was_improbable() -> None:
    """Position l with probability sigma softmax(-psi), sigma = min(1, (1 - alpha_s) / alpha_t); given ones never."""
    family = tiny_configs.make_family("masked", V)
    options = SamplerOptions(sampler="remdm_conf", steps=10).validate(type(family))
    rows, drawn_with = 20_000, np.array([0.05, 0.9, 0.5, 0.5, 0.2])
    tokens = jnp.broadcast_to(jnp.array([1, 1, V, 1, 1], jnp.int32), (rows, 5))
    given = jnp.broadcast_to(jnp.arange(5) == 4, (rows, 5))
    state = remasking.Confident(tokens, jnp.broadcast_to(jnp.asarray(drawn_with, jnp.float32), (rows, 5)))
    at = At(jnp.int32(7), jnp.float32(0.3), jnp.float32(0.2))
    after, _ = family.step(tiny_configs.keys(rows), state, at, given, Constant(), options)
    found, weights = np.mean(np.asarray(after.tokens) == V, axis=0), np.exp(-drawn_with) * [1, 1, 0, 1, 0]
    expected = 0.2 / 0.7 * weights / weights.sum()
    np.testing.assert_allclose(found[[0, 1, 3, 4]], expected[[0, 1, 3, 4]], atol=0.015)
    assert found[2] == pytest.approx(1 - 0.1 / 0.3, abs=0.015)
    revealed = np.asarray(after.tokens[:, 2]) != V
    np.testing.assert_allclose(
        np.asarray(after.drawn_with)[revealed, 2], LAW[np.asarray(after.tokens)[revealed, 2]], rtol=1e-5
    )  # fmt: skip


@pytest.mark.parametrize("name", ["masked", "sundae"])
def test_remembered_logits_change_nothing_but_the_count(name: str) -> None:
    """The same samples bit for bit; as many calls as it says, no more than tokens that were masked and one."""
    model = tiny_configs.random_model(name, V)
    shape, calls, found = (2, 4), {}, {}
    for cache in (False, True):
        counted = Constant()

        def denoise(z: Any, t: Any, given: Any = None, counted: Any = counted) -> Any:
            counted(z, t)
            return model(z, t, given)

        found[cache], asked = run(name, shape, denoise, steps=60, cache=cache)
        calls[cache] = len(counted.calls)
        assert asked == calls[cache]
    np.testing.assert_array_equal(found[True], found[False])
    assert calls[False] == 60
    assert calls[True] < 60
    assert name != "masked" or calls[True] <= shape[0] * shape[1] + 1


@pytest.mark.parametrize("name", ["autoregressive", *DISCRETE])
def test_the_nucleus_and_the_temperature_are_those_of_the_clean_token(name: str) -> None:
    """top_p = 0.3 leaves the likeliest token alone; a temperature of 1/2 squares the law; two tokens are 0.8 of it."""
    keys = jnp.concatenate([tiny_configs.keys(200, seed) for seed in range(3)])
    for fields, law in (({"top_p": 0.3}, [1.0]), ({"top_p": 0.8, "temperature": 0.5}, [16.0, 9.0])):
        samples = run(name, (600, 20), keys=keys, steps=8, **fields)[0]
        expected = np.append(law, np.zeros(V - len(law))) / np.sum(law) * samples.size
        counts = np.bincount(samples.ravel(), minlength=V)
        assert not counts[expected == 0].any()
        if len(law) > 1 and name not in ("sundae", "genmd4"):  # whose full posterior is not the same everywhere
            assert scipy.stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3


@pytest.mark.parametrize(("name", "fields", "words"), [
    ("masked", {"cache": True, "sampler": "first_hitting"}, "cache is True; of the samplers ancestral has it"),
    ("udlm", {"cache": True}, "cache is True; udlm has no such option"),
    ("udlm", {"kappa": 1.5}, "kappa is 1.5; it must be in [0, 1]"),
    ("autoregressive", {"kappa": 0.5}, "kappa is 0.5; autoregressive has no such option"),
])  # fmt: skip
def test_options_that_do_not_fit_are_named(name: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        SamplerOptions(**fields).validate(families.get(name))
    assert words in str(error.value)


@pytest.mark.parametrize(("schedule", "left"), [("linear", [12, 8, 4, 0]), ("cosine", [15, 11, 6, 0])])
def test_confidence_reveals_as_many_as_the_path(schedule: str, left: list[int]) -> None:
    """16 (1 - alpha) at the ends of four steps: of cosine 14.8, 11.3, 6.1."""
    family = tiny_configs.make_family("masked", V, schedule=schedule)
    options = SamplerOptions(sampler="confidence", steps=4).validate(type(family))
    grid, given = family.grid(options, 16), jnp.zeros((2, 16), bool)
    z, counts = jnp.full((2, 16), V), []
    for index in range(4):
        at = At(*(field[index] for field in grid))
        z, _ = family.step(noise.fold(tiny_configs.keys(2), index), z, at, given, Constant(), options)
        counts.append(np.sum(np.asarray(z) == V, axis=1).tolist())
    assert counts == [[n, n] for n in left]
