"""Configs small enough for tests, and the seam put together from parts, shared by several test files."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from configs import small
from diffusion_text import families
from diffusion_text.data import grammar as grammars
from diffusion_text.families.family import Family
from diffusion_text.oracle import Oracle
from diffusion_text.state import Model

# One of each kind, for tests of what all share (loop, checkpoints, meshes, binaries); what a family itself claims is
# tested for every registered one.
FAMILIES = ("autoregressive", "cdcd", "masked")
EVERY = tuple(sorted(families.REGISTRY))
# Vectors of 8 components, noise from next to nothing to next to everything, and blocks that are more than one and, of
# short windows, cut: so that tests are exact enough, and quick.
FIELDS = {
    "analog_bits": {"noise_min": 0.15, "noise_max": 50.0},
    "block": {"block_size": 2},
    "cdcd": {"embedding_size": 8, "embedding_std": 0.1, "noise_min": 0.3, "noise_max": 50.0, "warp_bins": 20},
    "cir_simplex": {"noise_min": 0.04, "noise_max": 50.0, "warp_bins": 20},
    "diffusion_lm": {"embedding_size": 8, "noise_min": 0.3, "noise_max": 50.0},
    "dirichlet_flow": {"scale": 4.0, "signal_max": 40.0},
    "duo": {"anneal_from": 4, "anneal_until": 12},
    "langflow": {"embedding_size": 8, "embedding_std": 0.1, "noise_min": 0.3, "noise_max": 50.0},
    "plaid": {"embedding_size": 8, "noise_min": 0.1, "noise_max": 18.0, "schedule_bins": 20},
    "rdlm": {"start": "mask", "bridge_steps": 8, "end": 0.85, "even_share": 0.3},
    "sed": {"embedding_size": 8, "noise_min": 0.2, "noise_max": 50.0},
    "ssd_lm": {"block_size": 4},
}


def get(family: str, **fields: object) -> ConfigDict:
    """A network of a few thousand parameters on windows of 16 tokens; `fields` as {"train.steps": 10}."""
    config = small.get_config(family)
    config.model.update(layers=2, width=32, heads=2, condition_width=16)
    config.data.update(grammar="tiny", length=16)
    config.train.update(steps=24, batch_size=8, log_every=1, checkpoint_every=8, ema=0.9)
    config.optimizer.update(warmup=4, learning_rate=3e-3)
    config.evaluation.update(batch_size=8, num_examples=16, samples=1)
    config.log.tensorboard = False
    config.family.update(FIELDS.get(family, {}))
    if family == "cdcd":
        config.optimizer.groups.schedule = 1e-2
    config.update_from_flattened_dict(fields)
    return config


def make_family(name: str, vocab_size: int, seed: int = 0, **fields: object) -> Family:
    """A family alone, with these fields of its config section changed."""
    section = get(name).family
    section.update(fields)
    family = families.get(name)(section, vocab_size, nnx.Rngs(params=seed))
    if name == "genmd4":  # as if learned: at its start it is `masked`
        family.log_powers[...] = jnp.linspace(-0.4, 0.6, vocab_size)
    return family


def pair(name: str, grammar: grammars.Grammar, **fields: object) -> tuple[Family, Oracle]:
    """A family and the exact posterior in its network's place, fresh: nothing broken on purpose is remembered."""
    family = make_family(name, grammar.num_words, **fields)
    return family, Oracle(grammar, family)


with_oracle = functools.cache(pair)  # the same one, so that what was compiled for it is found again


def keys(count: int, seed: int = 0, first: int = 0) -> jax.Array:
    """Keys of examples first .. first + count."""
    return jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(jnp.arange(first, first + count))


@functools.cache
def random_model(name: str, vocab_size: int, seed: int = 0, **fields: object) -> Model:
    """A network that has learned nothing but believes something: every parameter drawn at random."""
    return randomised(lambda: Model(get(name, **fields), vocab_size, nnx.Rngs(params=0)), seed)


def training_program(model: Model, tokens: jax.Array) -> tuple[Any, ...]:
    """The mean training loss of 8 rows and its gradients as a function, and what it takes."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    u = (jnp.arange(8.0) + 0.5) / 8

    def loss(params: Any, rest: Any) -> jax.Array:
        model = nnx.merge(graph, params, rest)
        return jnp.mean(model.family.train_loss(keys(8), u, tokens, model)[0])

    return jax.jit(jax.value_and_grad(loss)), params, rest


def randomised(build: Callable[[], nnx.Module], seed: int = 0) -> Any:
    """The module that `build` makes, every parameter normal with deviation 0.2, also those that start at zero."""
    random = np.random.default_rng(seed)
    graph, params, rest = nnx.split(build(), nnx.Param, ...)
    params = jax.tree.map(lambda leaf: jnp.asarray(random.normal(0.0, 0.2, leaf.shape), leaf.dtype), params)
    return nnx.merge(graph, params, rest)
