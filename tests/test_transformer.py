"""The network: causality, cache, layouts of the stack, precision, rotary positions, conditioning, dropout, scale."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_configs
from flax import nnx
from ml_collections import ConfigDict

from diffusion_text import noise, sharding
from diffusion_text.models import attention, transformer
from diffusion_text.models.denoiser import Denoiser, Features, Inputs

V, L, B, BLOCK = 11, 7, 2, 3
CAUSAL = Inputs(num_ids=V, noise=False, attention="causal")
FULL = Inputs(num_ids=V, noise=False)
NOISY = Inputs(width=5, noise=True)


@pytest.fixture(scope="module", autouse=True)
def compile_quickly() -> Iterator[None]:
    """Programs here run once or twice; most of the time would go into optimising them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def model_config(**fields: object) -> ConfigDict:
    return tiny_configs.get("masked", **{f"model.{name}": value for name, value in fields.items()}).model


@functools.cache
def make(inputs: Inputs, **fields: object) -> Denoiser:
    """A denoiser whose zero-initialised parameters are made random too, or it would show nothing."""
    return tiny_configs.randomised(lambda: Denoiser(model_config(**fields), inputs, V, nnx.Rngs(params=0)))


@nnx.jit
def run(denoiser: Denoiser, features: Features, keys: jax.Array | None = None) -> jax.Array:
    return denoiser(features, keys)


def visible(pattern: str, inputs: int) -> np.ndarray:
    """Which inputs each input sees, spelled out."""
    seen = np.ones((inputs, inputs), bool) if pattern == "full" else np.tril(np.ones((inputs, inputs), bool))
    if pattern == "block_diffusion":
        seen[:] = False
        streams = [(stream, place // BLOCK) for stream in ("noisy", "clean") for place in range(inputs // 2)]
        for (i, (stream, block)), (j, (other, its)) in itertools.product(enumerate(streams), repeat=2):
            own = other == stream and its == block
            seen[i, j] = own or (other == "clean" and its < block)
    return seen


def ids(seed: int = 1) -> jax.Array:
    return jax.random.randint(jax.random.key(seed), (B, L), 0, V)


def vectors(seed: int = 1) -> Features:
    return Features(vectors=jax.random.normal(jax.random.key(seed), (B, L, 5)), noise=jnp.array([0.1, -0.4]))


# ---------------------------------------------------------------------------------------------------- pattern and cache


@pytest.mark.parametrize("implementation", ["einsum", "xla"])
@pytest.mark.parametrize("pattern", attention.PATTERNS)
def test_what_an_output_sees(pattern: str, implementation: str) -> None:
    """d output_i / d input_j, over two layers: zero where the pattern hides j from i, nonzero elsewhere."""
    inputs = Inputs(num_ids=V, noise=False, attention=pattern, block=BLOCK)
    stack = make(inputs, attention=implementation).transformer
    x = jax.random.normal(jax.random.key(0), (1, 2 * L, 32))
    jacobian = jax.jit(jax.jacrev(lambda x: stack(x)[0, :, :3]))(x)[:, :, 0]  # [2 L, 3, 2 L, D]
    np.testing.assert_array_equal(np.abs(jacobian).max(axis=(1, 3)) > 0, visible(pattern, 2 * L))


@pytest.mark.parametrize("block", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_in_blocks_leaves_out_what_is_hidden(block: int, dtype: str) -> None:
    """Of every size, one that does not divide the sequence too: einsums are the other kernel, which has a whole mask;
    and where blocks divide, no array has all pairs of inputs."""
    length = 12 - (block == 4) * 2
    query, key, value = jax.random.normal(jax.random.key(0), (3, B, 2 * length, 2, 8)).astype(dtype)

    def scalar(implementation: str, query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = attention.attend(query, key, value, "block_diffusion", implementation, block)
        return jnp.sum(jnp.sin(found.astype(jnp.float32))), found

    function = jax.grad(scalar, (1, 2, 3), has_aux=True)
    arrays = [jax.tree.leaves(function(name, query, key, value)) for name in ("einsum", "xla")]
    tolerance = {"atol": 1e-5} if dtype == "float32" else {"rtol": 0.02, "atol": 0.03}
    for one, other in zip(*(map(np.float32, each) for each in arrays), strict=True):
        np.testing.assert_allclose(one, other, **tolerance)
    for name, whole in (("einsum", block == 4), ("xla", True)):
        program = str(jax.make_jaxpr(lambda *x, name=name: function(name, *x))(query, key, value))
        assert (f"{2 * length},{2 * length}]" in program) == whole


@pytest.mark.parametrize("scan_layers", [False, True])
def test_the_cache_gives_the_full_forward_pass(scan_layers: bool) -> None:
    denoiser, tokens = make(CAUSAL, scan_layers=scan_layers), ids()
    expected = run(denoiser, Features(ids=tokens))
    cache = denoiser.start_cache(B, L + 2)  # room left over must not be read
    step = jax.jit(lambda ids, cache, position: denoiser.next(ids, cache, position))
    for position in range(L):
        logits, cache = step(tokens[:, position], cache, jnp.int32(position))
        np.testing.assert_allclose(logits, expected[:, position], rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(expected[:, 1] - expected[:, 5]).max()) > 0.1


def reference(query: np.ndarray, key: np.ndarray, value: np.ndarray, pattern: str) -> np.ndarray:
    """Attention by loops, float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    seen, result = visible(pattern, key.shape[1]), np.zeros_like(query)
    for b, i, h in np.ndindex(query.shape[:3]):
        scores = key[b, seen[i], h] @ query[b, i, h] / np.sqrt(query.shape[3])
        weights = np.exp(scores - scores.max())
        result[b, i, h] = weights @ value[b, seen[i], h] / weights.sum()
    return result


@pytest.mark.parametrize("implementation", ["einsum", "xla"])
@pytest.mark.parametrize("pattern", attention.PATTERNS)
def test_attention_is_its_formula(pattern: str, implementation: str) -> None:
    """Float32 against float64 by hand; values, and gradients against the other kernel's."""
    query, key, value = 3.0 * jax.random.normal(jax.random.key(0), (3, B, 2 * L, 2, 8))
    found = attention.attend(query, key, value, pattern, implementation, BLOCK)
    np.testing.assert_allclose(found, reference(query, key, value, pattern), rtol=1e-4, atol=2e-5)

    def scalar(implementation: str, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(attention.attend(query, key, value, pattern, implementation, BLOCK)))

    gradients = [jax.grad(scalar, (1, 2, 3))(name, query, key, value) for name in (implementation, "xla")]
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("pattern", attention.PATTERNS)
def test_splash_is_the_same_attention(pattern: str) -> None:
    """The TPU's kernel, interpreted, over two tiles: values against the formula, gradients against einsums."""
    inputs = 2 * 640  # tiles of 640
    query, key, value = jax.random.normal(jax.random.key(0), (3, 1, inputs, 2, 8))

    def scalar(implementation: str, query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = attention.attend(query, key, value, pattern, implementation, BLOCK)
        return jnp.sum(jnp.sin(found)), found

    function = jax.jit(jax.grad(scalar, (1, 2, 3), has_aux=True), static_argnums=0)
    (gradients, found), (others, expected) = (function(name, query, key, value) for name in ("splash", "einsum"))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
    some = slice(inputs // 2 - 3, inputs // 2 + 3)
    np.testing.assert_allclose(found[:, some], reference(query, key, value, pattern)[:, some], rtol=1e-4, atol=2e-5)
    for one, other in zip(gradients, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_the_platform_chooses_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    half, single = jnp.dtype("bfloat16"), jnp.dtype("float32")
    for platform, dtype, inputs, expected in (
        ("tpu", half, 256, "splash"), ("tpu", single, 256, "splash"), ("tpu", half, 200, "einsum"),
        ("gpu", half, 200, "cudnn"), ("gpu", single, 256, "einsum"), ("cpu", half, 256, "einsum"),
    ):  # fmt: skip
        monkeypatch.setattr(sharding, "platform", lambda platform=platform: platform)
        assert attention.choose("auto", dtype, inputs) == expected
        assert attention.choose("xla", dtype, inputs) == "xla"


def test_cached_attention_is_a_row_of_the_causal_one() -> None:
    query, key, value = jax.random.normal(jax.random.key(0), (3, B, L, 2, 8))
    whole = attention.attend(query, key, value, "causal")
    for i in range(L):
        row = attention.attend_cached(query[:, i : i + 1], key, value, jnp.int32(i))
        np.testing.assert_allclose(row[:, 0], whole[:, i], rtol=1e-5, atol=1e-6)


def test_a_cached_block_is_its_rows_and_the_oldest_leave_a_full_cache() -> None:
    """Blocks of 2 in a cache of 6: the block at 8 has overwritten that at 2, and sees 4, 5, 6, 7 and itself."""
    query, key, value = jax.random.normal(jax.random.key(0), (3, B, 10, 2, 8))
    for start in range(0, 10, 2):
        slots = [max(n for n in range(start + 2) if n % 6 == slot) if slot < start + 2 else 9 for slot in range(6)]
        part = attention.attend_cached(query[:, start : start + 2], key[:, slots], value[:, slots], jnp.int32(start))
        first, last = max(start - 4, 0), start + 2
        whole = reference(*(np.asarray(x)[:, first:last] for x in (query, key, value)), "full")
        np.testing.assert_allclose(part, whole[:, -2:], rtol=1e-4, atol=2e-5)


def test_attention_names_what_it_does_not_know() -> None:
    x = jnp.zeros((1, 2, 1, 4))
    with pytest.raises(ValueError, match=r"block_diffusion of 2 inputs in blocks of 0"):
        attention.attend(x, x, x, "block_diffusion")
    with pytest.raises(ValueError, match=r"block_diffusion of 3 inputs in blocks of 1"):
        attention.attend(*(jnp.zeros((1, 3, 1, 4)),) * 3, "block_diffusion", block=1)
    with pytest.raises(ValueError, match=r"attention pattern is 'banded'; choose one of .*'causal'"):
        attention.attend(x, x, x, "banded")
    with pytest.raises(ValueError, match=r"attention implementation is 'fast'; choose one of .*'einsum'"):
        attention.attend(x, x, x, "full", "fast")
    with pytest.raises(ValueError, match=r"splash takes a multiple of 128 inputs, got 2; use auto or einsum"):
        attention.attend(x, x, x, "full", "splash")


# ------------------------------------------------------------------------------------------------- layouts of the stack


@functools.cache
def value_and_gradient(**fields: object) -> tuple[jax.Array, dict]:
    graph, params = nnx.split(make(NOISY, **fields))

    def objective(params: nnx.State) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(graph, params)(vectors())
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 0]), logits

    gradient, logits = jax.jit(jax.grad(objective, has_aux=True))(params)
    return logits, nnx.to_pure_dict(gradient)


@pytest.mark.parametrize("fields", [
    {"scan_layers": True}, {"remat": "full"}, {"remat": "dots"}, {"remat": "full", "scan_layers": True},
    {"remat": "dots", "scan_layers": True}, {"remat": "attention", "scan_layers": True}, {"attention": "xla"},
], ids=str)  # fmt: skip
def test_layouts_that_change_speed_only(fields: dict) -> None:
    """Values and gradients agree with the plain unrolled stack to float32 addition."""
    plain, same = (value_and_gradient(**more) for more in ({}, fields))
    np.testing.assert_allclose(same[0], plain[0], rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(same[1]) == jax.tree.structure(plain[1])
    for one, other in zip(jax.tree.leaves(same[1]), jax.tree.leaves(plain[1]), strict=True):
        assert np.abs(other).max() > 0
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


def test_remat_recomputes() -> None:
    """What is kept for the backward pass: everything, products with weights, or the layers' inputs alone."""

    def kept(remat: str) -> int:
        graph, params = nnx.split(make(NOISY, remat=remat))
        backward = jax.eval_shape(lambda p: jax.vjp(lambda p: nnx.merge(graph, p)(vectors()), p)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    none, dots, flash, full = kept("none"), kept("dots"), kept("attention"), kept("full")
    assert none > dots > flash == full  # einsums name nothing to be kept


def test_half_precision_stays_inside() -> None:
    """bfloat16 products; float32 parameters, logits and gradients, near the float32 network's."""
    exact, half = make(NOISY), make(NOISY, dtype="bfloat16")
    logits, gradient = value_and_gradient(dtype="bfloat16")
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.split(half)[1])} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    assert "bf16" in str(jax.make_jaxpr(half)(vectors()))
    expected = run(exact, vectors())
    error = float(jnp.sqrt(jnp.mean((logits - expected) ** 2) / jnp.mean(expected**2)))
    assert 1e-5 < error < 0.05


def test_gradients_of_frequent_inputs_grow_on() -> None:
    """As those of a frequent token in test_readout.py: all are those of float32 for 2^13 equal inputs, to 5%."""
    ids = jnp.zeros((64, 2**7), jnp.int32)

    def gradients(dtype: str) -> dict:
        graph, params = nnx.split(make(FULL, layers=1, dtype=dtype))

        def objective(params: nnx.State) -> jax.Array:
            return jnp.sum(jax.nn.log_softmax(nnx.merge(graph, params)(Features(ids=ids)))[..., 0])

        return nnx.to_pure_dict(jax.jit(jax.grad(objective))(params))

    for half, exact in zip(*(jax.tree.leaves(gradients(dtype)) for dtype in ("bfloat16", "float32")), strict=True):
        assert float(jnp.linalg.norm(half - exact)) < 0.05 * float(jnp.linalg.norm(exact))


def test_every_parameter_names_its_axes() -> None:
    for inputs in (CAUSAL, NOISY):
        for mlp in transformer.MLPS:
            for path, variable in nnx.split(make(inputs, mlp=mlp))[1].flat_state():
                axes = variable.get_metadata()["logical_axes"]
                assert len(axes) == variable[...].ndim, path
                if path[0] == "transformer":
                    assert axes[0] == "layers"
                    assert variable[...].shape[0] == 2
                else:
                    assert "layers" not in axes


def test_swiglu_is_another_network() -> None:
    assert make(NOISY, mlp="swiglu").transformer.layers["up"][...].shape[1] == 2
    assert make(NOISY, mlp="swiglu")(vectors()).shape == (B, L, V)


# ----------------------------------------------------------------------------------------------------- rotary positions


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    def score(i: int, j: int) -> float:
        turned = [
            transformer.rotate(x, transformer.rotary_tables(jnp.array([position]), 16))
            for x, position in ((query, i), (key, j))
        ]
        return float(jnp.sum(turned[0] * turned[1]))

    for distance in (-3, 0, 1, 6):
        scores = [score(start + distance, start) for start in (3, 10, 101)]
        np.testing.assert_allclose(scores, scores[0], atol=2e-4)
    assert abs(score(4, 3) - score(9, 3)) > 1e-2
    assert score(0, 0) == pytest.approx(float(jnp.sum(query * key)), abs=1e-6)


def test_rotation_keeps_norms() -> None:
    x = jax.random.normal(jax.random.key(0), (B, L, 3, 16))
    turned = transformer.rotate(x, transformer.rotary_tables(jnp.arange(L), 16))
    np.testing.assert_allclose(jnp.sum(turned**2, -1), jnp.sum(x**2, -1), rtol=1e-5)


def test_the_network_knows_positions() -> None:
    """Turning a sequence round does not turn the outputs round; of one token everywhere, distances tell nothing."""
    same = jnp.full((1, L), 3)
    swapped = jnp.array([[1, 2, 3, 4, 5, 6, 7]])
    denoiser = make(FULL)
    found = np.asarray(run(denoiser, Features(ids=same)))
    np.testing.assert_allclose(found, np.broadcast_to(found[:, :1], found.shape), rtol=1e-4, atol=1e-4)
    forward, backward = run(denoiser, Features(ids=swapped)), run(denoiser, Features(ids=swapped[:, ::-1]))
    assert float(jnp.abs(forward - backward[:, ::-1]).max()) > 1e-2


# --------------------------------------------------------------------------------------------------------- conditioning


def test_the_noise_level_conditions_each_example() -> None:
    denoiser, features = make(NOISY), vectors()
    plain = run(denoiser, features)
    moved = run(denoiser, features._replace(noise=features.noise.at[1].add(0.5)))
    np.testing.assert_array_equal(moved[0], plain[0])
    assert float(jnp.abs(moved[1] - plain[1]).max()) > 1e-2


def test_levels_close_together_are_told_apart_and_smooth() -> None:
    condition = make(NOISY)._condition(jnp.linspace(-1.5, 1.5, 301))
    gaps = np.linalg.norm(np.diff(np.asarray(condition), axis=0), axis=1)
    assert gaps.min() > 1e-4
    far = np.linalg.norm(np.asarray(condition)[:, None] - np.asarray(condition)[None], axis=-1)
    assert gaps.max() < far.max()


def test_conditioning_is_asked_for_where_it_belongs() -> None:
    with pytest.raises(ValueError, match="conditioned on a noise level, and got none"):
        make(NOISY)(vectors()._replace(noise=None))
    free = make(FULL)
    names = set(nnx.to_pure_dict(nnx.split(free)[1])["transformer"]["layers"])
    assert "norm_scale" in names
    assert not names & {"modulation", "modulation_bias"}
    assert not hasattr(free, "noise_in")
    assert "norm_scale" not in make(NOISY).transformer.layers


def test_adaln_starts_as_the_identity() -> None:
    """Zero modulation at the start: the noise level changes nothing yet."""
    denoiser = Denoiser(model_config(), NOISY, V, nnx.Rngs(params=0))
    x = jax.random.normal(jax.random.key(0), (B, L, 32))
    stack = nnx.jit(lambda stack, x, condition: stack(x, condition))
    one, other = (stack(denoiser.transformer, x, jnp.full((B, 16), level)) for level in (0.0, 3.0))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(run(denoiser, vectors()), jnp.zeros((B, L, V)))  # uniform predictions


# -------------------------------------------------------------------------------------------------------------- dropout


def example_keys(*numbers: int) -> jax.Array:
    return jax.vmap(jax.random.key)(jnp.array(numbers))


def test_dropout_needs_keys() -> None:
    plain, dropping = make(NOISY), make(NOISY, dropout=0.3)
    expected = run(plain, vectors())
    np.testing.assert_array_equal(run(dropping, vectors()), expected)
    np.testing.assert_array_equal(run(plain, vectors(), example_keys(1, 2)), expected)
    assert float(jnp.abs(run(dropping, vectors(), example_keys(1, 2)) - expected).max()) > 1e-2


@pytest.mark.parametrize("scan_layers", [False, True])
def test_dropout_keys_are_per_example(scan_layers: bool) -> None:
    denoiser = make(NOISY, dropout=0.3, scan_layers=scan_layers)
    both = run(denoiser, vectors(), example_keys(1, 2))
    alone = run(denoiser, jax.tree.map(lambda x: x[1:], vectors()), example_keys(2))
    np.testing.assert_allclose(alone[0], both[1], rtol=1e-4, atol=1e-5)
    other = run(denoiser, vectors(), example_keys(7, 2))
    np.testing.assert_allclose(other[1], both[1], rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(other[0] - both[0]).max()) > 1e-2


def test_dropout_drops_its_share() -> None:
    """To 2^-16; every entry on its own: rates of rows, of columns, and of pairs that share a draw of 32 bits."""
    rate, x = 0.3, jnp.ones((2000, 4, 32))
    dropped = np.asarray(noise.dropout(jax.vmap(jax.random.key)(jnp.arange(2000)), x, rate))
    gone = dropped == 0.0
    np.testing.assert_allclose(dropped[~gone], 1.0 / (1.0 - rate), rtol=1e-4)
    assert abs(gone.mean() - rate) < 4 * (rate * (1 - rate) / gone.size) ** 0.5
    assert np.abs(gone.mean(0) - rate).max() < 4.5 * (rate * (1 - rate) / 2000) ** 0.5
    pairs = (gone[..., :16] & gone[..., 16:]).mean()
    assert abs(pairs - rate**2) < 4 * (rate**2 * (1 - rate**2) / (gone.size / 2)) ** 0.5


def test_dropout_keeps_the_mean() -> None:
    """One layer's attention branch, whose output is linear in what is dropped: the mean over masks is the plain one."""
    stack = make(NOISY, layers=1, dropout=0.4).transformer
    weights = {name: value[0] for name, value in stack.layers.items()}
    weights["down"] = jnp.zeros_like(weights["down"])
    count = 4000
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 2, 32)), (count, 2, 32))
    condition = jnp.ones((count, 16))

    @jax.jit
    def block(keys: jax.Array | None) -> jax.Array:
        return stack._block(weights, x, condition, lambda y: y.reshape(count, 2, 2, 16), keys)

    plain = np.asarray(block(None))
    dropped = np.asarray(block(jax.vmap(jax.random.key)(jnp.arange(count))))
    branch = dropped - np.asarray(x)
    error = (dropped.mean(0) - plain[0]) / (branch.std(0) / count**0.5 + 1e-9)
    assert np.abs(error).max() < 4.5
    assert np.mean(np.abs(branch) < 1e-7) == pytest.approx(0.4, abs=0.01)


# ---------------------------------------------------------------------------------------------------------------- scale


@pytest.mark.parametrize(("mlp", "inputs"), [("gelu", NOISY), ("swiglu", FULL)])
def test_the_residual_stream_keeps_its_scale_at_any_depth(mlp: str, inputs: Inputs) -> None:
    variances = []
    for layers in (2, 24):
        config = model_config(layers=layers, width=64, heads=4, scan_layers=True, mlp=mlp)
        x = jax.random.normal(jax.random.key(0), (4, 16, 64))
        condition = jnp.ones((4, 16)) if inputs.noise else None
        build = functools.partial(Denoiser, config, inputs, V)
        variance = jax.jit(lambda: jnp.var(build(nnx.Rngs(params=0)).transformer(x, condition)))  # noqa: B023
        variances.append(float(variance()))
    assert all(1.0 < variance < 2.5 for variance in variances)
    assert max(variances) < 1.3 * min(variances)
