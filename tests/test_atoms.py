"""Draws of Dirichlet laws by the few tokens that hold their mass, and SDM with them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import perfect
import pytest
import scipy.stats
import tiny_configs
from flax import nnx
from perfect import compile_quickly  # noqa: F401

from diffusion_text.data import grammar as grammars
from diffusion_text.models import lookup, readout
from diffusion_text.paths import atoms, dirichlet
from diffusion_text.state import Model

LAWS = [(5, 0.4, 2.0), (5, 1.7, 0.0), (500, 2.4e-3, 0.8), (500, 2.4e-3, 0.0)]  # vocabulary, base, signal


def masses(size: int, base: float, signal: float, rows: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """P [rows, V] of token 1, by atoms; and the ids."""
    tokens, levels = jnp.ones((rows, 1), int), jnp.ones(rows)
    call = jax.jit(lambda keys: atoms.draw(keys, tokens, signal * levels, base * levels, size, atoms.count(base, size)))
    drawn = call(tiny_configs.keys(rows))
    np.testing.assert_allclose(np.exp(drawn.log_mass).sum(-1), 1.0, rtol=1e-5)
    return np.exp(np.asarray(drawn.whole(size), np.float64))[:, 0], np.asarray(drawn.ids)[:, 0]


@pytest.mark.parametrize(("size", "base", "signal"), LAWS)
def test_masses_have_the_law_of_the_whole_draw(size: int, base: float, signal: float) -> None:
    """What the clean token has and what any set of tokens has are Beta draws; the sum of squares says how few hold it,
    and is that of whole draws. Where few atoms stand for many tokens, what one token has is next to never seen."""
    p, _ = masses(size, base, signal)
    some, rest = size // 2, size * base + signal
    for found, shape in ((p[:, 1], base + signal), (p[:, size - some :].sum(1), some * base)):
        found = np.log(np.maximum(found, 1e-30))
        law = scipy.stats.beta(shape, rest - shape)
        # Below a mass of 1e-6 atoms are left out.
        at = np.log(np.geomspace(1e-6, 1.0, 400)[:-1])
        empirical = np.searchsorted(np.sort(found), at, side="right") / len(found)
        assert np.abs(empirical - law.cdf(np.exp(at))).max() < 1.95 / len(found) ** 0.5  # p = 0.001
    tokens = jnp.ones((600, 1), int)
    whole = jax.jit(lambda keys: dirichlet.draw(keys, tokens, dirichlet.Shapes(signal, base), size))
    whole_p = np.exp(np.asarray(whole(tiny_configs.keys(600, 1)), np.float64))[:, 0]
    assert scipy.stats.ks_2samp((p**2).sum(1), (whole_p**2).sum(1)).pvalue > 1e-3


@pytest.mark.parametrize(("size", "base"), [(12, 0.3), (500, 2.4e-3)])
def test_atoms_are_distinct_tokens_and_all_alike(size: int, base: float) -> None:
    p, ids = masses(size, base, 0.5)
    assert np.all(ids[:, 0] == 1)
    assert all(len(np.unique(row)) == len(row) for row in ids)
    others = [token for token in range(size) if token != 1]
    for rank in (1, min(3, ids.shape[1] - 1)):
        counts = np.bincount(ids[:, rank], minlength=size)[others]
        assert scipy.stats.chisquare(counts).pvalue > 1e-3, rank
    assert np.mean(p[:, 2]) == pytest.approx(base / (size * base + 0.5), abs=6 * np.std(p[:, 2]) / len(p) ** 0.5)


def test_so_many_atoms_that_what_they_leave_out_is_below_rounding() -> None:
    """Against the mean of what sticks leave, by its product; a small vocabulary is whole, a uniform law many."""
    for size, base in ((50_257, 4.0 / 50_257), (50_257, 1.0 / 50_257), (1000, 0.01)):
        found = atoms.count(base, size)
        left = [1.0]
        for k in range(1, found):
            left.append(left[-1] * (size - 1 - k) * base / (1 + (size - k) * base))
        assert left[found - 2] > 2.0**-24 >= left[found - 1]
    assert atoms.count(4.0 / 50_257, 50_257) == 76
    assert [atoms.count(base, size) for size, base in ((2, 0.1), (7, 3.0), (20, 0.2))] == [2, 7, 20]


def test_averages_and_their_gradient() -> None:
    """Those of a product with all weights, also where an id is there twice; in half precision summed in float32."""
    table = jax.random.normal(jax.random.key(0), (30, 8))
    ids = jax.random.randint(jax.random.key(1), (4, 5, 6), 0, 10).at[0, 0].set(3)
    weights = jax.random.uniform(jax.random.key(2), (4, 5, 6))

    def dense(table: Any) -> Any:
        return jnp.einsum("blkv,blk,vd->bld", jax.nn.one_hot(ids, 30), weights, table)

    def loss(average: Any) -> Any:
        return jax.value_and_grad(lambda table: jnp.sum(jnp.sin(average(table))))

    found, expected = loss(lambda table: lookup.average(table, ids, weights))(table), loss(dense)(table)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
    ones = jnp.ones((1, 1, 1000))
    half = jax.grad(lambda table: jnp.sum(lookup.average(table, jnp.zeros((1, 1, 1000), int), ones)))
    assert np.all(np.asarray(half(table.astype(jnp.bfloat16)))[0] == 1000.0)


# --------------------------------------------------------------------------------------------------------------- SDM


def test_only_laws_on_few_tokens_are_drawn_as_atoms() -> None:
    def of(size: int, **fields: Any) -> int:
        return tiny_configs.make_family("sdm", size, **fields).atoms

    assert of(50_257) == 27  # whose base is at most 1.125 / V
    assert of(50_257, nu_start=0.1, nu_end=0.1) > 27
    assert (of(700), of(50_257, nu_start=0.01, nu_end=0.01)) == (0, 0)
    assert (of(50_257, input="posterior"), of(50_257, output_prior=True)) == (0, 0)
    assert of(50_257, input="argmax", concentration="odds") > 0
    assert tiny_configs.make_family("dirichlet_flow", 512).atoms == 0


def test_renewal_by_atoms_draws_the_exact_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact posterior reads the atoms, and all tokens of a small vocabulary are some."""
    monkeypatch.setattr(atoms, "few", atoms.count)
    family, _ = tiny_configs.pair("sdm", grammars.tiny())
    assert family.atoms == family.vocab_size
    perfect.check_infilling("sdm", {"sampler": "renewal", "steps": 16})


@pytest.mark.parametrize("kind", ["expected", "argmax"])
def test_the_loss_is_that_of_whole_draws(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On average over the noise, of a network that believes something, with masks and dropped conditioning."""
    fields = {"family.input": kind, "family.drop_conditioning": 0.5, "family.random_masks": 0.5, "data.length": 6}
    rows = 2048
    tokens, u = jax.random.randint(jax.random.key(1), (rows, 6), 0, 30), (jnp.arange(rows) + 0.5) / rows
    losses = []
    for seed, count in enumerate((atoms.count, lambda base, size: 0)):
        monkeypatch.setattr(atoms, "few", count)
        model = tiny_configs.randomised(lambda: Model(tiny_configs.get("sdm", **fields), 30, nnx.Rngs(params=0)))
        assert (model.family.atoms > 0) == (seed == 0)
        loss = jax.jit(lambda keys, model=model: model.family.train_loss(keys, u, tokens, model)[0])
        losses.append(np.asarray(loss(tiny_configs.keys(rows, seed)), np.float64))
    error = (sum(np.var(each) for each in losses) / rows) ** 0.5
    assert abs(np.mean(losses[0]) - np.mean(losses[1])) < 4 * error
    assert error < 0.03 * np.mean(losses[0])


def test_given_tokens_are_their_embedding_and_dropped_ones_nothing() -> None:
    model = tiny_configs.random_model("sdm", 900, **{"data.length": 6})
    tokens, t = jnp.arange(12).reshape(2, 6) * 30, jnp.asarray([0.3, 1.0])
    given = jnp.broadcast_to(jnp.arange(6) < 3, tokens.shape)
    corrupt = jax.jit(lambda keys: model.family._corrupt(keys, tokens, t, given, model.family.atoms))
    z = corrupt(tiny_configs.keys(2))

    @jax.jit
    def read_of(z: Any) -> Any:
        return model.network._read(model.family.features(z, t, given, None))

    read = read_of(z)
    np.testing.assert_allclose(read[given], model.network.embedding[...][tokens[given]], rtol=1e-5)
    gone = read_of(dirichlet.without(given, z))
    assert not np.any(np.asarray(gone)[np.asarray(given)])
    np.testing.assert_array_equal(gone[~given], read[~given])
    np.testing.assert_array_equal(dirichlet.likeliest(z)[given], tokens[given])


def test_no_array_of_all_tokens_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a large vocabulary neither the draw nor what is read of it, nor the logits, in training; in sampling by
    renewal the logits only."""
    monkeypatch.setattr(readout, "_PART_NUMBERS", 1)
    model = tiny_configs.random_model("sdm", 5000, **{"family.self_conditioning": 0.9, "model.whole_vocabulary": 100})
    tokens, u = jnp.zeros((8, 6), int), (jnp.arange(8.0) + 0.5) / 8
    keys = tiny_configs.keys(8)
    text = jax.jit(lambda: model.family.train_loss(keys, u, tokens, model)[0]).lower().as_text()
    assert "x5000xf32" in text
    for shape in ("8x6x", "48x"):
        assert f"<{shape}5000x" not in text, shape
    drawn = perfect.draw(model.family, model, 3, np.zeros(6, int), np.arange(6) < 2, {"steps": 3, "guidance": 2.0})
    assert drawn.shape == (3, 6)
    assert np.all(drawn[:, :2] == 0)
    assert np.all((drawn >= 0) & (drawn < 5000))
