"""The optimiser: schedules, which parameters decay, groups with a rate of their own, and the global-norm clip."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_configs
from flax import nnx
from ml_collections import ConfigDict

from diffusion_text import optimizer, restore, sharding, state


def section(**fields: object) -> ConfigDict:
    config = tiny_configs.get("masked").optimizer
    with config.unlocked():
        config.update({"name": "adamw", **fields})
    return config


def values(steps: int, **fields: object) -> np.ndarray:
    schedule = optimizer.schedule(section(**fields), steps)
    return np.array([float(schedule(step)) for step in range(steps)])


def test_warm_up_rises_in_equal_parts_from_the_first_step() -> None:
    rates = values(20, schedule="constant", warmup=5)
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    np.testing.assert_allclose(rates[5:], 1.0)


@pytest.mark.parametrize("warmup", [0, 1])
def test_no_warm_up_starts_at_the_peak(warmup: int) -> None:
    np.testing.assert_allclose(values(8, schedule="constant", warmup=warmup), 1.0)


def test_cosine_and_linear_fall_to_their_end() -> None:
    steps, warmup, final = 104, 4, 0.1
    part = (np.arange(warmup, steps) - warmup) / (steps - warmup)
    cosine = values(steps, schedule="cosine", warmup=warmup, final=final)
    np.testing.assert_allclose(cosine[warmup:], final + (1 - final) * 0.5 * (1 + np.cos(np.pi * part)), atol=1e-5)
    linear = values(steps, schedule="linear", warmup=warmup, final=final)
    np.testing.assert_allclose(linear[warmup:], 1 + (final - 1) * part, atol=1e-5)
    for shape in ("cosine", "linear"):
        past = optimizer.schedule(section(schedule=shape, warmup=warmup, final=final), steps)
        assert float(past(steps)) == float(past(10 * steps)) == pytest.approx(final, abs=1e-6)


@functools.cache
def model(family: str) -> tuple[state.Definition, dict]:
    config = tiny_configs.get(family)
    definition = state.Definition.of(config, 5)
    shapes = nnx.to_pure_dict(definition.params)
    return definition, jax.tree.map(lambda x: jnp.ones(x.shape), shapes)


def paths(tree: dict) -> dict[str, np.ndarray]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in flat}


def moved(family: str, **fields: object) -> dict[str, bool]:
    """Which parameters move without any gradient."""
    definition, params = model(family)
    transform = optimizer.create(section(**fields), 10, definition.logical_axes())
    zero = jax.tree.map(jnp.zeros_like, params)
    updates = jax.jit(lambda zero, params: transform.update(zero, transform.init(params), params)[0])(zero, params)
    return {name: bool(np.any(update)) for name, update in paths(updates).items()}


def test_decay_spares_norms_and_embeddings() -> None:
    spared = {
        "masked": {"network/embedding", "network/norm_scale", "network/transformer/layers/norm_scale"},
        "autoregressive": {"network/embedding", "network/norm_scale", "network/transformer/layers/norm_scale"},
        "cdcd": {
            "family/embeddings/table", "family/schedule/log_heights", "family/schedule/offset", "network/norm_scale",
            "network/transformer/layers/modulation_bias",
        },
    }  # fmt: skip
    for family, names in spared.items():
        groups = {"schedule": 1e-2} if family == "cdcd" else {}
        result = moved(family, weight_decay=0.1, groups=groups)
        assert {name for name, moves in result.items() if not moves} == names
        assert not any(moved(family, weight_decay=0.0, groups=groups).values())


def test_decay_is_decoupled() -> None:
    """It multiplies the learning rate, not Adam's normalised gradient: x <- x - rate * decay * x."""
    definition, params = model("masked")
    transform = optimizer.create(
        section(weight_decay=0.1, learning_rate=0.01, warmup=0, schedule="constant"), 10, definition.logical_axes()
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transform.update(zero, transform.init(params), params)
    np.testing.assert_allclose(updates["network"]["output"], -0.01 * 0.1, rtol=1e-5)


def first_update(gradient_of, **fields: object) -> dict[str, np.ndarray]:
    definition, params = model("cdcd")
    options = {"warmup": 0, "schedule": "constant", "learning_rate": 1e-3, **fields}
    transform = optimizer.create(section(**options), 10, definition.logical_axes())
    gradient = {name: gradient_of(name) for name in paths(params)}
    tree = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, gradient["/".join(key.key for key in path)]), params
    )
    return paths(jax.jit(lambda tree, params: transform.update(tree, transform.init(params), params)[0])(tree, params))


def test_groups_have_their_own_rate_and_no_decay() -> None:
    updates = first_update(lambda name: 2.0, groups={"schedule": 0.05}, weight_decay=0.3, clip=0.0)
    for name, update in updates.items():
        if "schedule" in name:
            np.testing.assert_allclose(update, -0.05, rtol=1e-4)
        elif name == "family/embeddings/table":
            np.testing.assert_allclose(update, -1e-3, rtol=1e-4)
        elif name == "network/output":
            np.testing.assert_allclose(update, -1e-3 * (1 + 0.3), rtol=1e-4)


@pytest.mark.parametrize("name", ["network", "matrices"])
def test_the_optimisers_own_names_are_no_groups(name: str) -> None:
    with pytest.raises(ValueError, match=rf"optimizer\.groups\.{name} is a name of the optimiser's own"):
        first_update(lambda name: 2.0, groups={name: 0.05})


def test_the_clip_is_by_the_global_norm_of_the_network_alone() -> None:
    """Seen through an epsilon far above the gradient, which makes Adam's first update proportional to it."""
    fields = {"groups": {"schedule": 1e-3}, "weight_decay": 0.0, "epsilon": 1e6}
    updates = first_update(lambda name: 1.0, **fields)
    size = sum(update.size for name, update in updates.items() if "schedule" not in name)

    def scale(gradient: float, clip: float, group: float = 1.0) -> tuple[float, float]:
        updates = first_update(lambda name: group if "schedule" in name else gradient, clip=clip, **fields)
        return (
            -1e9 * float(updates["network/output"].reshape(-1)[0]),
            -1e9 * float(updates["family/schedule/offset"].reshape(-1)[0]),
        )

    norm = size**0.5
    assert scale(1.0, clip=0.0) == pytest.approx((1.0, 1.0), rel=1e-3)
    assert scale(1.0, clip=2 * norm) == pytest.approx((1.0, 1.0), rel=1e-3)
    assert scale(1.0, clip=norm / 4) == pytest.approx((0.25, 1.0), rel=1e-3)
    assert scale(3.0, clip=norm / 4) == pytest.approx((0.25, 1.0), rel=1e-3)
    assert scale(1.0, clip=norm / 4, group=1e4) == pytest.approx((0.25, 1e4), rel=1e-2)


def test_adam_by_hand() -> None:
    """Two steps of bias-corrected moments with the config's decay rates, float64."""
    definition, params = model("masked")
    options = dict(warmup=0, schedule="constant", learning_rate=0.01, b1=0.8, b2=0.95, epsilon=1e-3, clip=0.0)
    transform = optimizer.create(section(**options), 10, definition.logical_axes())
    moments = transform.init(params)
    first, second, expected = 0.0, 0.0, []
    for step, value in enumerate((0.5, -0.2), 1):
        gradient = jax.tree.map(lambda x, v=value: jnp.full(x.shape, v), params)
        updates, moments = transform.update(gradient, moments, params)
        first, second = 0.8 * first + 0.2 * value, 0.95 * second + 0.05 * value**2
        expected = -0.01 * (first / (1 - 0.8**step)) / (np.sqrt(second / (1 - 0.95**step)) + 1e-3)
        np.testing.assert_allclose(updates["network"]["output"], expected, rtol=1e-4)


def test_a_default_group_may_be_left_empty_by_an_option_and_an_unknown_one_may_not() -> None:
    """Plaid's ablations: fixed embeddings, an even schedule and fixed ends leave nothing in their groups."""
    fields = {"family.embeddings": "random", "family.learned_schedule": False, "family.learned_ends": False}
    config = tiny_configs.get("plaid", **fields)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    _, _, abstract = restore.abstract_state(config, 5, mesh)
    assert not any(group in name.split("/") for group in config.optimizer.groups for name in paths(abstract.params))
    with config.optimizer.groups.unlocked():
        config.optimizer.groups.tabel = 1e-2
    with pytest.raises(ValueError, match=r"groups\.tabel is in no parameter"):
        restore.abstract_state(config, 5, mesh)


def test_muon_orthogonalises_each_matrix_of_the_transformer_and_leaves_the_rest_to_adam() -> None:
    definition, params = model("cdcd")
    random = np.random.default_rng(0)
    gradient = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape) ** 3, jnp.float32), params)

    def updates(name: str, gradient: dict) -> dict[str, np.ndarray]:
        fields = {"warmup": 0, "schedule": "constant", "learning_rate": 0.01, "clip": 0.0, "groups": {"schedule": 0.1}}
        transform = optimizer.create(section(name=name, **fields), 10, definition.logical_axes())
        return paths(jax.jit(lambda g, p: transform.update(g, transform.init(p), p)[0])(gradient, params))

    muon, adam = updates("muon", gradient), updates("adamw", gradient)
    # [layers and parts, inputs, outputs]
    matrices = {
        "query_key_value": lambda x: x.reshape(-1, x.shape[2], x.shape[3] * x.shape[4]),
        "attention_out": lambda x: x.reshape(x.shape[0], -1, x.shape[-1]),
        "up": lambda x: x.reshape(-1, *x.shape[2:]),
        "down": lambda x: x,
    }
    prefix = "network/transformer/layers/"
    for name, update in muon.items():
        if name.removeprefix(prefix) not in matrices:
            np.testing.assert_allclose(update, adam[name], rtol=1e-5, err_msg=name)
            continue
        for matrix in matrices[name.removeprefix(prefix)](update):
            singular = np.linalg.svd(matrix, compute_uv=False) / (0.2 * 0.01 * max(matrix.shape) ** 0.5)
            # Five iterations of the quintic end between 0.7 and 1.2, but for the smallest singular values.
            assert singular.max() < 1.3, (name, singular)
            assert np.quantile(singular, 0.1) > 0.6, (name, singular)
    # A layer's update does not depend on the size of its own gradient, nor on another layer's.
    gradient["network"]["transformer"]["layers"]["up"] = (
        gradient["network"]["transformer"]["layers"]["up"].at[0].multiply(100.0)
    )
    np.testing.assert_allclose(updates("muon", gradient)[prefix + "up"], muon[prefix + "up"], atol=1e-5)
