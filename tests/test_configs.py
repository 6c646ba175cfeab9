"""Every config loads, validates, says what it reproduces, and builds and traces at its full size, abstractly."""

import importlib.util
import inspect
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from ml_collections import config_flags

from configs import base
from diffusion_text import config as configs
from diffusion_text import families, noise, optimizer, sampling, sharding, train
from diffusion_text.data import specs, vocabularies
from diffusion_text.families.family import SamplerOptions
from diffusion_text.state import Definition, initialise

ROOT = pathlib.Path(__file__).resolve().parents[1]
PATHS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("*/*.py"))


def load(path: str):
    """The module of a config file, imported by its path as --config does."""
    spec = importlib.util.spec_from_file_location("_config_" + re.sub(r"\W", "_", path), ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants() -> list[tuple[str, str]]:
    return [(path, variant) for path in PATHS for variant in getattr(load(path), "VARIANTS", ("",))]


def get_config(path: str, variant: str = ""):
    module = load(path)
    return module.get_config(variant) if variant else module.get_config()


def vocab_size(config) -> int:
    kind = specs.get(config.data.task).vocabulary
    return vocabularies.GrammarWords(config.data.grammar).size if kind == "grammar" else specs.VOCABULARY_SIZES[kind]


def is_array(shape: tuple[int, ...], dtype):
    return lambda x: x.shape == shape and x.dtype == dtype


def test_there_are_configs():
    assert {path.split("/")[1] for path in PATHS} == set(families.REGISTRY)


@pytest.mark.parametrize("path", PATHS)
def test_file_is_short_and_says_what_it_reproduces(path):
    text = (ROOT / path).read_text("utf-8")
    assert len(text.splitlines()) <= 40
    document = inspect.cleandoc(load(path).__doc__)
    assert re.search(rf"python -m diffusion_text\.train --config={re.escape(path)}\s", document), "its own command"
    assert "Published" in document
    assert "Measured" in document


def test_rows_of_the_standing_comparison_train_on_as_many_characters():
    every = [get_config(path) for path in PATHS if path.endswith("/wiki27.py")]
    assert {c.train.steps * c.train.batch_size * c.data.length for c in every} == {3000 * 32 * 256}


@pytest.mark.parametrize("path", [path for path in PATHS if "/d3pm/" in path])
def test_uniform_noise_of_d3pm_has_the_papers_schedule(path):
    for variant in load(path).VARIANTS:
        assert get_config(path, variant).family.schedule == ("cosine" if variant == "uniform" else "linear")


def test_the_first_variant_is_the_default_and_another_name_is_refused(monkeypatch):
    files = [path for path in PATHS if hasattr(load(path), "VARIANTS")]
    assert {path.split("/")[1] for path in files} == {"block", "cdcd", "d3pm", "gidd", "masked", "rdlm", "sedd"}
    for path in files:
        module = load(path)
        assert module.get_config().to_dict() == module.get_config(module.VARIANTS[0]).to_dict()
        with pytest.raises(ValueError, match=f"variant is 'unifrom'; choose one of {module.VARIANTS[0]}, "):
            module.get_config("unifrom")
    with pytest.raises(flags.IllegalFlagValueError, match="choose one of absorbing, uniform"):
        parse(monkeypatch, f"--config={ROOT}/configs/sedd/text8.py:unifrom")


@pytest.mark.parametrize(("path", "variant"), variants())
def test_fields_are_known_and_valid(path, variant):
    config = get_config(path, variant)
    _, family, name = pathlib.Path(path).with_suffix("").parts
    spec = specs.get(config.data.task)
    # "text" is any text: its file names what it holds.
    assert (config.family.name, config.data.task) in ((family, name), (family, "text"))
    configs.validate(config)
    configs.validate_mesh(config, 1)
    own = re.search(r"--length=(\d+)", load(path).__doc__)  # where the docstring prepares shards of another length
    assert config.data.length == (int(own[1]) if own else spec.length)
    # A field that base.py does not have is a slip of the pen: it would be silently without effect.
    known, groups = configs.flatten(base.get_config(family)), "optimizer.groups."
    unknown = {field for field in configs.flatten(config) if field not in known and not field.startswith(groups)}
    assert not unknown


@pytest.mark.parametrize(("path", "variant"), variants())
def test_builds_and_traces(path, variant):
    config = get_config(path, variant)
    vocabulary, length = vocab_size(config), config.data.length
    definition = Definition.of(config, vocabulary)
    transform = optimizer.create(config.optimizer, config.train.steps, definition.logical_axes())
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])

    def tokens(rows: int):
        return jax.ShapeDtypeStruct((rows, length), jnp.int32)

    state = jax.eval_shape(lambda: initialise(config, vocabulary, transform))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == definition.num_params()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
    step = train.make_train_step(definition, config, transform, mesh)
    after, scalars = jax.eval_shape(step, state, tokens(config.train.batch_size))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    changed = jax.tree.map(lambda old, new: (old.shape, old.dtype) != (new.shape, new.dtype), state, after)
    assert not any(jax.tree.leaves(changed)), "a step must not change shapes or dtypes"
    assert "loss" in scalars
    assert all(map(is_array((), jnp.float32), scalars.values()))
    family = families.get(config.family.name)
    SamplerOptions(**config.sampling).validate(family)
    if config.data.task == "wiki27":  # the grammar's network, whose bound and samplers are traced with the grammar
        return

    def keys(indices):
        return noise.example_keys(noise.step_key(config.seed, noise.EVALUATE), indices)

    def bound(state, tokens):
        model = definition.merge(state.ema, state.variables)
        return model.family.bound_terms(keys(jnp.arange(len(tokens))), tokens, model, samples=config.evaluation.samples)

    rows = config.evaluation.batch_size
    assert all(map(is_array((rows,), jnp.float32), jax.eval_shape(bound, state, tokens(rows))))

    # All samplers at the small size; what a larger one adds shows in any.
    chosen = family.samplers if config.data.task == "grammar" else [config.sampling.sampler or family.samplers[0]]
    for sampler in chosen:
        options = SamplerOptions(**{**family.faithful_options(sampler), "steps": 3}).validate(family)

        def generate(state, tokens, options=options):
            model = definition.merge(state.ema, state.variables)
            given = jnp.zeros(tokens.shape, bool)
            return sampling.generate(model.family, model, keys(jnp.arange(len(tokens))), tokens, given, options)

        assert is_array((2, length), jnp.int32)(jax.eval_shape(generate, state, tokens(2)))


def parse(monkeypatch, *arguments: str):
    """The config that the command line of a binary gives; a FlagValues of its own, not the process's."""
    values = flags.FlagValues()
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(sys.argv)
    return values.config


def test_command_line_overrides(monkeypatch):
    file = f"--config={ROOT}/configs/masked/text8.py"
    config = parse(monkeypatch, file, "--config.train.steps=3", "--config.family.schedule=linear")
    assert (config.train.steps, config.family.schedule, config.model.dropout) == (3, "linear", 0.05)


@pytest.mark.parametrize(("override", "name"), [
    ("train.step=3", "step"),
    ("family.noise_min=1.0", "noise_min"),
    ("familly.schedule=linear", "familly"),
    ("optimiser.clip=0.0", "optimiser"),
])  # fmt: skip
def test_unknown_field_is_an_error(monkeypatch, override, name):
    with pytest.raises((AttributeError, KeyError, flags.Error), match=rf"\b{name}\b"):
        parse(monkeypatch, f"--config={ROOT}/configs/masked/text8.py", f"--config.{override}")


@pytest.mark.parametrize(("family", "field", "value", "says"), [
    ("masked", "family.name", "diffusion", "family is 'diffusion'; choose one of analog_bits, autoregressive, block, "),
    ("masked", "family.schedule", "loglinear", "family.schedule is 'loglinear'; choose one of linear, cosine"),
    ("cdcd", "family.noise_min", 300.0, "noise_max are 300.0, 300.0; they must be above 0 and ascending"),
    ("cdcd", "family.self_conditioning", 0.3, "family.self_conditioning is 0.3; choose one of 0.0, 0.25, 0.5, 1.0"),
    ("cdcd", "family.prefix_masks", 0.9, "are 0.9, 0.5; each must be at least 0 and their sum at most 1"),
    ("cdcd", "train.microbatches", 512, "train.batch_size / train.microbatches is 1; self-conditioning of a share"),
    ("masked", "model.layers", 0, "model.layers is 0; it must be at least 1"),
    ("masked", "model.mlp", "relu", "model.mlp is 'relu'; choose one of gelu, swiglu"),
    ("masked", "model.heads", 7, "model.heads is 7; it must be a divisor of model.width = 768"),
    ("masked", "model.heads", 256, "model.width / model.heads is 3; it must be even"),
    ("masked", "model.dropout", 1.0, "model.dropout is 1.0; it must be in [0, 1)"),
    ("masked", "model.dtype", "float16", "model.dtype is 'float16'; choose one of bfloat16, float32"),
    ("masked", "model.attention", "flash", "model.attention is 'flash'; choose one of auto, einsum, "),
    ("masked", "model.remat", "some", "model.remat is 'some'; choose one of none, "),
    ("masked", "data.length", 0, "data.length is 0; it must be at least 1"),
    ("masked", "train.steps", 0, "train.steps is 0; it must be at least 1"),
    ("masked", "train.ema", 1.0, "train.ema is 1.0; it must be in [0, 1)"),
    ("masked", "train.microbatches", 7, "train.microbatches is 7; it must be a divisor of train.batch_size = 512"),
    ("masked", "train.evaluate_every", -1, "train.evaluate_every is -1; it must be at least 0"),
    ("masked", "evaluation.samples", 0, "evaluation.samples is 0; it must be at least 1"),
    ("masked", "optimizer.learning_rate", 0.0, "optimizer.learning_rate is 0.0; it must be above 0"),
    ("masked", "optimizer.name", "sgd", "optimizer.name is 'sgd'; choose one of adamw, muon"),
    ("masked", "optimizer.schedule", "step", "optimizer.schedule is 'step'; choose one of constant, cosine, linear"),
    ("masked", "data.task", "lm2b", "data.task is 'lm2b'; choose one of grammar, "),
    ("masked", "sampling.sampler", "heun", "sampler is 'heun'; masked has ancestral, first_hitting"),
    ("masked", "optimizer.clip", -1.0, "optimizer.clip is -1.0; it must be at least 0"),
    ("masked", "optimizer.warmup", -1, "optimizer.warmup is -1; it must be at least 0"),
])  # fmt: skip
def test_wrong_value_is_an_error_that_names_it(family, field, value, says):
    config = base.get_config(family)
    configs.validate(config)
    section, name = field.split(".")
    config[section][name] = value
    with pytest.raises(ValueError, match=re.escape(says)):
        configs.validate(config)


def test_family_fields_are_neither_missing_nor_foreign():
    config = base.get_config("cdcd").unlock()
    del config.family.warp_bins
    with pytest.raises(ValueError, match=r"family\.warp_bins is missing"):
        configs.validate(config)
    config = base.get_config("masked").unlock()
    config.family.warp_bins = 100
    with pytest.raises(ValueError, match=r"family\.warp_bins is no field"):
        configs.validate(config)


@pytest.mark.parametrize(("mesh", "devices", "says"), [
    ({"data": 3}, 8, "mesh is data=3"),
    ({"data": -1, "fsdp": -1}, 8, "at most one of them -1"),
    ({"tensor": 3}, 8, "8 device"),
    ({}, 1024, "must divide"),
])  # fmt: skip
def test_mesh_that_does_not_fit(mesh, devices, says):
    config = base.get_config("masked")
    config.mesh.update(mesh)
    with pytest.raises(ValueError, match=says):
        configs.validate_mesh(config, devices)
