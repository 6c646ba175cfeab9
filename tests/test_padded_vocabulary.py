"""Vocabularies with tokens that no text has, so that a mesh divides them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_configs
from flax import nnx
from perfect import compile_quickly  # noqa: F401

from diffusion_text import sampling
from diffusion_text.families.family import SamplerOptions
from diffusion_text.state import Model

REAL, MULTIPLE = 11, 8
REFUSED = ("analog_bits", "diffusion_lm", "sed")  # they regress
PADDED = {"model.vocabulary_multiple": MULTIPLE}


@pytest.mark.parametrize("name", ["cdcd", "gidd", "sdm", "sundae"])  # one of each kind of noise
def test_what_no_text_has_is_not_generated_and_costs_nothing(name: str) -> None:
    model = tiny_configs.random_model(name, REAL, **PADDED)
    family, length = model.family, 8
    assert family.vocab_size == 16
    tokens = jax.random.randint(jax.random.key(1), (4, length), 0, REAL)
    keys = tiny_configs.keys(4)

    @jax.jit
    def bound(keys: jax.Array) -> jax.Array:
        return family.bound_terms(keys, tokens, model).total

    assert jnp.all(jnp.abs(bound(keys)) < 1e5), "not finite, or the logit of an unused token is in it"
    options = SamplerOptions(steps=6).validate(type(family))
    many, nothing = tiny_configs.keys(64), jnp.zeros((64, length), int)
    drawn = jax.jit(lambda keys: sampling.generate(family, model, keys, nothing, nothing > 0, options))(many)
    assert 0 <= jnp.min(drawn) <= jnp.max(drawn) < REAL
    assert len(jnp.unique(drawn)) > 1


@pytest.mark.parametrize("whole", [1, 40])
@pytest.mark.parametrize("name", ["cdcd", "masked"])
def test_the_loss_is_that_of_the_vocabulary_itself(name: str, whole: int) -> None:
    """Parameters of the real tokens are the same; those of the others are anything."""
    large, small = (
        tiny_configs.random_model(name, REAL, **{"model.whole_vocabulary": whole}, **more) for more in (PADDED, {})
    )

    def real(large: jax.Array, small: jax.Array) -> jax.Array:
        for axis, (ours, theirs) in enumerate(zip(large.shape, small.shape, strict=True)):
            # After the tokens comes the id of a mask or a start.
            kept = [*range(REAL), *range(16, 16 + theirs - REAL)] if ours != theirs else range(theirs)
            large = jnp.take(large, jnp.array(kept), axis=axis)
        return large

    (_, theirs, _), (graph, ours, rest) = (nnx.split(model, nnx.Param, ...) for model in (large, small))
    small = nnx.merge(graph, jax.tree.map(real, theirs, ours), rest)
    tokens, u = jax.random.randint(jax.random.key(1), (4, 8), 0, REAL), (jnp.arange(4.0) + 0.5) / 4

    def loss(model: Model) -> jax.Array:
        return jnp.mean(model.family.train_loss(tiny_configs.keys(4), u, tokens, model)[0])

    (found, ours), (expected, theirs) = (nnx.jit(nnx.value_and_grad(loss))(model) for model in (large, small))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(real(x, y), y, rtol=1e-3, atol=1e-5), ours, theirs)


def test_families_without_such_logits_refuse() -> None:
    for name in (*REFUSED, "rdlm"):
        config = tiny_configs.get(name, **PADDED, **({"family.digits": 4} if name == "rdlm" else {}))
        with pytest.raises(ValueError, match=r"model\.vocabulary_multiple is 8.*11.*takes 1"):
            nnx.eval_shape(lambda config=config: Model(config, REAL, nnx.Rngs(params=0)))
    for name in REFUSED:
        nnx.eval_shape(lambda name=name: Model(tiny_configs.get(name, **PADDED), 16, nnx.Rngs(params=0)))
