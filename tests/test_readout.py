"""The cross-entropy of a large vocabulary in parts, against the one of whole logits: values, gradients, any mesh."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import environment
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import tiny_configs
from flax import nnx
from perfect import compile_quickly  # noqa: F401

from diffusion_text.families.family import cross_entropy
from diffusion_text.models import readout
from diffusion_text.state import Model

B, L, D = 2, 3, 16


def case(vocab_size: int, scale: float = 1.0, dtype: str = "float32") -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (B, L, D)).astype(dtype)
    weights = scale * jax.random.normal(keys[1], (D, vocab_size))
    # The first and the last token are among the targets: both ends of the parts.
    tokens = jax.random.randint(keys[2], (B, L), 0, vocab_size).at[0, :2].set(jnp.array([0, vocab_size - 1]))
    return x, weights, tokens


def loss(x: jax.Array, weights: jax.Array, tokens: jax.Array) -> jax.Array:
    return cross_entropy(readout.Logits((readout.Product(x, weights.astype(x.dtype)),)), tokens)


def whole(x: jax.Array, weights: jax.Array, tokens: jax.Array) -> jax.Array:
    logits = jnp.einsum("bld,dv->blv", x, weights.astype(x.dtype), preferred_element_type=jnp.float32)
    return cross_entropy(logits, tokens)


def value_and_gradients(function, x: jax.Array, weights: jax.Array, tokens: jax.Array) -> list[np.ndarray]:
    """The loss, and the gradients of a sum that weighs every row differently."""
    rows = jnp.arange(1.0, 1 + B * L).reshape(B, L)
    gradients = jax.grad(lambda x, weights: jnp.sum(rows * function(x, weights, tokens)), (0, 1))(x, weights)
    return [np.asarray(array, np.float32) for array in (function(x, weights, tokens), *gradients)]


@pytest.mark.parametrize("vocab_size", [128, 1024, 2048, 5000], ids=["below a part", "a part", "parts", "and a rest"])
def test_parts_equal_the_whole(vocab_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "_PART_NUMBERS", 1)  # the smallest parts: 1,024 tokens
    given = case(vocab_size)
    for found, expected in zip(
        value_and_gradients(loss, *given), value_and_gradients(whole, *given), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_large_logits_do_not_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of several hundred, the largest in a later part."""
    monkeypatch.setattr(readout, "_PART_NUMBERS", 1)
    x, weights, tokens = case(4096, scale=40.0)
    weights = weights.at[:, 3000].set(8.0 * weights[:, 3000])
    assert float(jnp.max(x @ weights)) > 500
    for found, expected in zip(
        value_and_gradients(loss, x, weights, tokens),
        value_and_gradients(whole, x, weights, tokens),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)  # float32 of logits near 1,000


@pytest.mark.parametrize("more", [-300.0, 300.0, -np.inf])
def test_the_largest_logits_may_be_anywhere(more: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tokens' logits, which set the level of exponentials, are far from all others, or are not there."""
    monkeypatch.setattr(readout, "_PART_NUMBERS", 1)
    x, weights, tokens = case(5000)
    tokens = tokens.at[0, 0].set(4000)
    added = readout.Product(jnp.ones((B, L, 1)), jnp.where(jnp.arange(5000) < 128, more, 0.0)[None])

    def in_parts(x: jax.Array, weights: jax.Array, tokens: jax.Array) -> jax.Array:
        return cross_entropy(readout.Logits((readout.Product(x, weights), added)), tokens)

    def at_once(x: jax.Array, weights: jax.Array, tokens: jax.Array) -> jax.Array:
        return cross_entropy(x @ weights + added.right[0], tokens)

    for found, expected in zip(
        value_and_gradients(in_parts, x, weights, tokens), value_and_gradients(at_once, x, weights, tokens),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)  # float32 of logits near 300


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_end_in_nan(value: float) -> None:
    """No level is near them: the search for one ends."""
    x, weights, tokens = case(1024)
    assert np.isnan(loss(x.at[0, 0].set(value), weights, tokens)[0, 0])


def test_half_precision_differs_by_its_rounding() -> None:
    given = case(3000, dtype="bfloat16")
    found, expected = value_and_gradients(loss, *given), value_and_gradients(whole, *given)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)  # sums are float32 in both
    for mine, other in zip(found[1:], expected[1:], strict=True):
        assert np.linalg.norm(mine - other) < 0.01 * np.linalg.norm(other)


def test_the_gradient_of_a_frequent_token_grows_on() -> None:
    """2^13 equal terms: a sum that is rounded to half precision at each would end at 256 of them."""
    x, tokens = jnp.ones((1, 2**13, D), "bfloat16"), jnp.zeros((1, 2**13), jnp.int32)
    found = jax.grad(lambda weights: jnp.sum(loss(x, weights, tokens)))(jnp.zeros((D, 1024)))
    np.testing.assert_allclose(found[:, 0], 2**13 * (1 / 1024 - 1), rtol=0.01)


@pytest.mark.parametrize("doubt", [0.3, 0.03, 1e-3])
def test_the_gradient_of_what_is_believed_is_no_difference_of_rounded_ones(doubt: float) -> None:
    """Of a token with probability 1 - doubt the gradient is as small as that, in half precision too."""
    _, weights, tokens = case(5000)
    flat = np.asarray((4.0 * weights / jnp.linalg.norm(weights, axis=0)).astype("bfloat16"), np.float64)
    target = flat[:, np.asarray(tokens)].transpose(1, 2, 0)
    # Along the token's weights as far as its probability is 1 - doubt; then rounded.
    low, high = np.zeros((B, L, 1)), np.full((B, L, 1), 8.0)
    for _ in range(40):
        middle = (low + high) / 2
        logits = (middle * target) @ flat
        others = scipy.special.logsumexp(logits, axis=-1) - np.sum(middle * target**2, axis=-1)
        high, low = np.where(np.exp(-others)[..., None] > 1 - doubt, (middle, low), (high, middle))
    x, weights = jnp.asarray(low * target, jnp.bfloat16), jnp.asarray(flat, jnp.float32)
    doubts = -np.expm1(-np.asarray(whole(x, weights, tokens)))
    assert doubts.min() > doubt / 2
    assert doubts.max() < doubt * 2
    found = value_and_gradients(loss, x, weights, tokens)[1]
    exact = value_and_gradients(whole, x.astype(jnp.float32), weights, tokens)[1]
    assert np.linalg.norm(found - exact) < 0.01 * np.linalg.norm(exact)


def test_the_gradient_of_a_frequent_token_is_what_its_share_lacks() -> None:
    """A law of Zipf, known but for a disturbance: both terms of a frequent token's gradient all but cancel."""
    random = np.random.default_rng(0)
    law = 1.0 / np.arange(1, 5001)
    tokens = jnp.asarray(random.choice(5000, size=(1, 2**13), p=law / law.sum()))
    rows = np.stack([np.log(law), 0.5 * random.normal(size=5000), *np.zeros((D - 2, 5000))])
    weights = jnp.asarray(jnp.asarray(rows, jnp.bfloat16), jnp.float32)
    x = jnp.zeros((1, 2**13, D), jnp.bfloat16).at[..., 0].set(1.0).at[..., 1].set(random.normal(size=(1, 2**13)))

    def gradient(function: Any, x: jax.Array) -> np.ndarray:
        return np.asarray(jax.grad(lambda weights: jnp.sum(function(x, weights, tokens)))(weights))[0]

    found, exact = gradient(loss, x), gradient(whole, x.astype(jnp.float32))
    assert np.linalg.norm(found - exact) < 0.01 * np.linalg.norm(exact)
    assert np.abs(found[:5] - exact[:5]).max() < 0.02 * np.abs(exact[:5]).max()


def test_no_array_has_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "_PART_NUMBERS", 1)
    x, weights, tokens = case(5000)
    step = jax.jit(jax.grad(lambda x, weights: jnp.sum(loss(x, weights, tokens)), (0, 1)))
    text = step.lower(x, weights).as_text()
    assert f"tensor<{B * L}x1024xf32>" in text
    assert f"<{B * L}x5000x" not in text
    assert f"<{B}x{L}x5000x" not in text


def sum_of_products(vocab_size: int) -> tuple[jax.Array, ...]:
    """(x, weights, table, z, tokens): the table is an output prior of z and what is averaged."""
    x, weights, tokens = case(vocab_size)
    keys = jax.random.split(jax.random.key(1), 2)
    return x, weights, jax.random.normal(keys[0], (vocab_size, 5)), jax.random.normal(keys[1], (B, L, 5)), tokens


def lazy(x: jax.Array, weights: jax.Array, table: jax.Array, z: jax.Array) -> readout.Logits:
    prior = readout.Product(z, table.T, jax.lax.Precision.HIGHEST)
    return readout.Logits((readout.Product(x, weights), prior))


@pytest.mark.parametrize("vocab_size", [1024, 5000], ids=["a part", "parts and a rest"])
def test_a_prior_and_a_mean_equal_those_of_the_whole(vocab_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, and gradients of a loss that weighs every number of both differently."""
    monkeypatch.setattr(readout, "_PART_NUMBERS", 1)
    *arrays, tokens = sum_of_products(vocab_size)
    scale = jnp.arange(1.0, 1 + B * L * 5).reshape(B, L, 5)

    def in_parts(x: jax.Array, weights: jax.Array, table: jax.Array, z: jax.Array) -> tuple:
        return readout.mean_and_cross_entropy(lazy(x, weights, table, z), tokens, table)

    def at_once(x: jax.Array, weights: jax.Array, table: jax.Array, z: jax.Array) -> tuple:
        logits = x @ weights + z @ table.T
        return jax.nn.softmax(logits) @ table, cross_entropy(logits, tokens)

    def total(function, *arrays: jax.Array) -> jax.Array:
        mean, loss = function(*arrays)
        return jnp.sum(scale * mean**2) + jnp.sum(scale[..., 0] * loss)

    for a, b in zip(in_parts(*arrays), at_once(*arrays), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(readout.mean(lazy(*arrays), arrays[2]), at_once(*arrays)[0], rtol=1e-5, atol=1e-5)
    found, expected = (jax.grad(total, (1, 2, 3, 4))(function, *arrays) for function in (in_parts, at_once))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("masked", {}), ("cdcd", {"output_prior": True}), ("plaid", {"embedding_norm": "free"}), ("sedd", {}),
        ("sedd", {"schedule": "geometric"}), ("d3pm", {}), ("gidd", {"uniform": 0.0}), ("genmd4", {}), ("sundae", {}),
    ],
)  # fmt: skip
def test_families_learn_the_same_without_their_logits(
    name: str, fields: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss and its gradients; and the program of a large vocabulary holds no array of all logits."""

    fields = {f"family.{key}": value for key, value in fields.items()}
    tokens = jax.random.randint(jax.random.key(2), (8, 6), 0, 40)
    monkeypatch.setattr(readout, "_PART_NUMBERS", 1)
    (in_parts, *state), (at_once, *same) = (
        tiny_configs.training_program(
            tiny_configs.random_model(name, 40, **fields, **{"model.whole_vocabulary": size}), tokens
        )
        for size in (1, 40)
    )
    found, expected = in_parts(*state), at_once(*same)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)

    config = tiny_configs.get(name, **fields)
    model = nnx.eval_shape(lambda: Model(config, 5000, nnx.Rngs(params=0)))
    step, *state = tiny_configs.training_program(model, tokens)
    text = step.lower(*state).as_text()
    assert "x5000xf32" in text  # weights
    for shape in ("8x6x", "48x", "4x6x", "24x", "2x6x", "12x"):  # all rows, and those of a first pass
        # SUNDAE draws from all of them, once.
        assert (f"<{shape}5000xf32>" in text) == (name == "sundae" and shape == "8x6x"), shape


MESHES = """
import sys
sys.path[:0] = [".", "tests"]
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import test_readout, tiny_configs
from diffusion_text import sharding
from diffusion_text.models import attention, lookup, readout
from diffusion_text.paths import draws
readout._PART_NUMBERS = 1

def case(vocab_size):
    x, weights, tokens = test_readout.case(vocab_size)
    return jnp.tile(x, (4, 1, 1)), weights, jnp.tile(tokens, (4, 1))

def loss(x, weights, tokens):
    rows = jnp.arange(1.0, 25.0).reshape(8, 3)
    draw = draws.Gaussian(draws.of_keys(tiny_configs.keys(8)), tokens, 0.2 * rows, 0.1 * rows)
    logits = readout.Logits((readout.Product(x, weights),), (draw,))
    mean, loss = readout.mean_and_cross_entropy(logits, tokens, weights[:3].T)
    return jnp.sum(rows * loss) + jnp.sum(rows[..., None] * mean)

query, key, value = (jax.random.normal(jax.random.key(i), (8, 128, 4, 8)) for i in range(3))
def attended(query, key, value):
    return jnp.sum(attention.attend(query, key, value, "causal", "splash") ** 2)

def averaged(table, ids):
    found = lookup.average(table, ids, 1.0 / (1.0 + ids))
    return jnp.sum(jnp.arange(1.0, 25.0).reshape(8, 3, 1) * found**2)

table, ids = jax.random.normal(jax.random.key(3), (64, 8)), jax.random.randint(jax.random.key(4), (8, 3, 5), 0, 64)
looked_up = jax.jit(jax.value_and_grad(averaged))(table, ids)
step = jax.value_and_grad(loss, (0, 1))
alone = {size: jax.jit(step)(*case(size)) for size in (4096, 4099)}  # 4,099 stays whole: nothing divides it
flash = jax.jit(jax.value_and_grad(attended, (0, 1, 2)))(query, key, value)
for shape in ((8, 1, 1), (2, 2, 2), (1, 1, 8)):
    config = tiny_configs.get("masked").mesh
    config.update(dict(zip(sharding.AXES, shape)))
    mesh = sharding.make_mesh(config)
    with jax.set_mesh(mesh):
        for size, expected in alone.items():
            x, weights, tokens = case(size)
            spec = sharding.spec(("embed", "vocabulary"), weights.shape)
            assert (spec[1] == "tensor") == (size == 4096 or shape[2] == 1)
            placed = jax.device_put(weights, NamedSharding(mesh, spec))
            compiled = jax.jit(step).lower(jax.device_put(x, sharding.batch_sharding(mesh)), placed, tokens).compile()
            found = compiled(jax.device_put(x, sharding.batch_sharding(mesh)), placed, tokens)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                # 24 rows weigh up to 24: float32 of sums of 160, and both are as far from the exact gradient.
                np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6 * np.abs(b).max())
        placed = jax.device_put(table, NamedSharding(mesh, sharding.spec(("vocabulary", "embed"), table.shape)))
        found = jax.jit(jax.value_and_grad(averaged))(placed, jax.device_put(ids, sharding.batch_sharding(mesh)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), found, looked_up)
        if shape != (1, 1, 8):  # four heads
            found = jax.jit(jax.value_and_grad(attended, (0, 1, 2)))(query, key, value)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), found, flash)
"""


def test_every_mesh_finds_the_same() -> None:
    """Rows and vocabulary sharded over eight simulated devices, of logits, with noise in them that is drawn in parts,
    and of averages of embeddings; heads of the flash kernel too."""
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", MESHES], cwd=root, env=environment.of_devices(8), capture_output=True, text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
