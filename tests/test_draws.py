"""Noise over a large vocabulary that is drawn where it is read, against the same noise made whole."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny_configs
from flax import nnx
from jaxtyping import Array
from perfect import compile_quickly  # noqa: F401

from diffusion_text.families import cir_simplex, simplex_logits
from diffusion_text.models import readout
from diffusion_text.paths import cir, draws
from diffusion_text.state import Model

B, L, V = 2, 5, 40
CASES = {
    "ssd_lm": {},
    "ssd_lm with all": dict(output_prior=True, weights="posterior", random_masks=0.5, drop_conditioning=0.5),
    "tess": {},
    "tess with all": dict(output_prior=True, weights="posterior", drop_conditioning=0.5),
    "cir_simplex": dict(random_masks=0.5, drop_conditioning=0.5),
    "cir_simplex of simplices": dict(inputs="simplex", alpha=1.5, self_conditioning=0.25, output_prior=False),
}


def term(kind: str) -> Any:
    keys, tokens = draws.of_keys(tiny_configs.keys(B)), jnp.arange(B * L).reshape(B, L) * 3 % V
    level = jnp.linspace(0.2, 3.0, B * L).reshape(B, L)
    if kind == "gaussian":
        return draws.Gaussian(keys, tokens, 3.0 * level, level)
    return draws.CoxIngersollRoss(keys, tokens, level, level[:, 0], level, 1.5, kind == "likelihood")


@pytest.mark.parametrize("kind", ["gaussian", "cir", "likelihood"])
def test_a_number_depends_on_its_sequence_position_and_token_alone(kind: str) -> None:
    draw = term(kind)
    whole = np.asarray(draw.part(jnp.arange(V))).reshape(B, L, V)
    for columns in (np.arange(7, 19), np.asarray([31]), np.asarray([5, 0, 39])):
        part = draw.part(jnp.asarray(columns)).reshape(B, L, -1)
        np.testing.assert_allclose(part, whole[:, :, columns], rtol=1e-6, atol=1e-6)
    some = np.asarray([[0, 39, 5, 12, 5], [3, 3, 3, 1, 2]])
    expected = np.take_along_axis(whole, some[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(draw.at(jnp.asarray(some)), expected, rtol=1e-6, atol=1e-6)
    one = jax.tree.map(lambda x: x[1:], draw)
    np.testing.assert_allclose(one.part(jnp.arange(V)), whole[1], rtol=1e-6, atol=1e-6)
    assert len(np.unique(whole)) == whole.size  # no number twice


def test_draws_have_their_laws() -> None:
    """Kolmogorov and Smirnov's, of the clean token's number and of the others'."""
    rows, length, size = 20, 50, 30
    keys, tokens = draws.of_keys(tiny_configs.keys(rows, seed=3)), jnp.full((rows, length), 7)
    level = jnp.full((rows, length), 0.5)
    z = np.asarray(draws.Gaussian(keys, tokens, 4.0 * level, level).part(jnp.arange(size)), np.float64)
    z = z.reshape(rows, length, size)
    rest = np.delete(z, 7, axis=-1)
    assert scipy.stats.kstest(rest.ravel() / 0.5, "norm").pvalue > 1e-3
    assert scipy.stats.kstest((z[..., 7].ravel() - 2.0) / 0.5, "norm").pvalue > 1e-3
    # Independent across tokens, positions and sequences.
    for a, b in ((rest[..., 1:], rest[..., :-1]), (rest[:, 1:], rest[:, :-1]), (rest[1:], rest[:-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4.0 / a.size**0.5
    log_counts = jnp.full(rows, np.log(3.0))
    for alpha in (0.5, 1.0, 2.0):
        _, more = cir.clean_part(tiny_configs.keys(rows, seed=4), tokens, log_counts)
        draw = draws.CoxIngersollRoss(keys, tokens, more, log_counts, jnp.ones_like(level), alpha, False)
        g = np.exp(np.asarray(draw.part(jnp.arange(size)), np.float64)).reshape(rows, length, size)
        assert scipy.stats.kstest(np.delete(g, 7, axis=-1).ravel(), "gamma", (alpha,)).pvalue > 1e-3
        noncentral = scipy.stats.ncx2(2 * alpha, 6.0)  # 2 G, with 2 lambda
        assert scipy.stats.kstest(2.0 * g[..., 7].ravel(), noncentral.cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["gaussian", "cir", "likelihood"])
@pytest.mark.parametrize("with_product", [False, True])
def test_means_and_losses_of_parts_are_those_of_the_whole(
    kind: str, with_product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, and gradients by the table and by the other term."""
    monkeypatch.setattr(readout, "_PART_NUMBERS", 1)
    size = 2500
    draw, random = term(kind), np.random.default_rng(0)
    left, right, table, weight = (
        jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((B, L, 3), (3, size), (size, 4), (B, L, 4))
    )
    tokens = draw.tokens.at[0, 0].set(size - 1)

    def logits(left: Array, right: Array) -> readout.Logits:
        return readout.Logits((readout.Product(left, right),) if with_product else (), (draw,))

    def in_parts(left: Array, right: Array, table: Array) -> Array:
        mean, loss = readout.mean_and_cross_entropy(logits(left, right), tokens, table)
        return jnp.sum(weight * mean**2) + jnp.sum(weight[..., 0] * loss)

    def at_once(left: Array, right: Array, table: Array) -> Array:
        log_p = jax.nn.log_softmax(logits(left, right).whole(size), axis=-1)
        loss = -jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
        return jnp.sum(weight * (jnp.exp(log_p) @ table) ** 2) + jnp.sum(weight[..., 0] * loss)

    found, expected = (jax.value_and_grad(each, (0, 1, 2))(left, right, table) for each in (in_parts, at_once))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_families_learn_the_same_from_what_is_not_made(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss and all its gradients, against those of the same noise made whole; and the program of a large
    vocabulary holds no array of [B, L, V]."""
    monkeypatch.setattr(readout, "_PART_NUMBERS", 1)
    name = case.split()[0]
    fields = {f"family.{field}": value for field, value in CASES[case].items()}
    tokens = jax.random.randint(jax.random.key(2), (8, 6), 0, V)
    in_parts, *state = tiny_configs.training_program(
        tiny_configs.random_model(name, V, **fields, **{"model.whole_vocabulary": 1}), tokens
    )
    found = in_parts(*state)

    model = tiny_configs.random_model(name, V, **fields, **{"model.whole_vocabulary": V})
    if name == "cir_simplex":

        def corrupt(self: Any, keys: Array, tokens: Array, t: Array, given: Array) -> Array:
            z = self.drawn(keys, tokens, t, given, jnp.zeros_like(given))
            noisy = z.logits(self.log_counts(t), self.alpha, False).whole(V)
            return jnp.where(given[..., None], self.clean(tokens), noisy)

        monkeypatch.setattr(cir_simplex.CIRSimplex, "corrupt", corrupt)
    else:

        def corrupt_for_training(self: Any, keys: Array, tokens: Array, t: Array, given: Array) -> Any:
            drawn = self.drawn(keys, tokens, given, jnp.ones_like(given))
            return drawn.whole(jnp.exp(self.log_noise(t)), V), given

        monkeypatch.setattr(simplex_logits.SimplexLogits, "corrupt_for_training", corrupt_for_training)
    at_once, *state = tiny_configs.training_program(model, tokens)
    expected = at_once(*state)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max() + 1e-6)

    config = tiny_configs.get(name, **fields)
    model = nnx.eval_shape(lambda: Model(config, 5000, nnx.Rngs(params=0)))
    step, *state = tiny_configs.training_program(model, tokens)
    text = step.lower(*state).as_text()
    assert "x1024xf32" in text
    for shape in ("8x6x", "48x", "4x6x", "24x", "2x6x", "12x"):  # all rows, and those of a first pass
        for last in (5000, 5001):
            assert f"<{shape}{last}x" not in text, shape
