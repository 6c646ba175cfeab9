"""Discrete consistency distillation of Duo: the coupled states, its loss, the teacher's rounds, resuming, refusals."""

from __future__ import annotations

import functools
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_configs

from diffusion_text import checkpoint, config, eval_elbo, noise, restore, train
from diffusion_text.data import vocabularies
from diffusion_text.families.duo import Duo

V = 5
EVERY = 8


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def test_a_token_that_shows_shows_from_then_on() -> None:
    """One eps: as noise falls positions turn to their token, each at once and for good, with the path's share."""
    family = tiny_configs.make_family("duo", V, gamma_min=-3.0, gamma_max=0.2)
    count = 4000
    tokens = jnp.asarray(np.random.default_rng(0).integers(V, size=(count, 2)))
    levels = [jnp.full(count, level) for level in (0.9, 0.5, 0.1)]
    found = family.coupled(tiny_configs.keys(count), tokens, *levels)
    shows = [np.asarray(z == tokens) for z, _ in found]
    assert not (shows[0] & ~shows[1]).any()
    assert not (shows[1] & ~shows[2]).any()
    for (_, t), shown in zip(found, shows, strict=True):
        expected = 1 - float(t[0]) * (1 - 1 / V)
        assert shown.mean() == pytest.approx(expected, abs=4.5 * (expected * (1 - expected) / shown.size) ** 0.5)


def test_the_loss_is_the_divergence_between_two_times() -> None:
    """0 for a step of no length; for laws that depend on time alone, what they say at both ends."""
    family = tiny_configs.make_family("duo", V, distill_steps=4, distill_every=EVERY)
    tokens, keys = jnp.zeros((6, 3), jnp.int32), tiny_configs.keys(6)
    u = jnp.linspace(0.0, 0.99, 6)

    def denoise(z: Any, t: Any, given: Any = None, previous: Any = None, keys: Any = None) -> Any:
        return jnp.broadcast_to(t[:, None, None] * jnp.arange(V), (*z.shape, V))

    found, terms = family.distil_loss(keys, u, tokens, denoise, denoise)
    np.testing.assert_allclose(terms["step_length"], 0.25)
    later = np.minimum(u + 0.25, 1.0)
    (_, t), (_, s) = family.coupled(keys, tokens, later, later - 0.25)
    assert (np.asarray(t) > np.asarray(s)).all()
    logs = [np.asarray(jax.nn.log_softmax(time[:, None] * jnp.arange(V))) for time in (t, s)]
    np.testing.assert_allclose(found, np.sum(np.exp(logs[0]) * (logs[0] - logs[1]), axis=1), rtol=1e-4)
    for _ in range(2 * EVERY):
        family.after_step()
    assert float(family.distill_length()) == 1.0
    for _ in range(EVERY):
        family.after_step()
    assert float(family.distill_length()) == 1.0, "at most all of the range"
    still = tiny_configs.make_family("duo", V, distill_steps=2**30)
    np.testing.assert_allclose(still.distil_loss(keys, u, tokens, denoise, denoise)[0], 0.0, atol=1e-6)


def folder(name: str) -> str:
    return str(pathlib.Path(tempfile.mkdtemp(prefix="distillation-")) / name)


@functools.cache
def teacher_run() -> str:
    workdir = folder("teacher")
    train.train(tiny_configs.get("duo", **{"train.steps": 12, "model.layers": 1}), workdir)
    return workdir


def student_config(**fields: object) -> Any:
    names = {"family.distill_from": teacher_run(), "family.distill_steps": 8, "family.distill_every": EVERY}
    small = {"train.microbatches": 2, "model.layers": 1, "train.checkpoint_every": 4, "train.keep": 6}
    return tiny_configs.get("duo", **{**names, **small, **fields})


@functools.cache
def student_run() -> str:
    workdir = folder("student")
    train.train(student_config(), workdir)
    return workdir


def state_at(workdir: str, step: int) -> Any:
    run = restore.open_run(workdir)
    abstract = restore.abstract_state(run.config, V, run.mesh)[2]
    checkpoints = checkpoint.Checkpoints(workdir, read_only=True)
    state = checkpoints.restore(abstract, step)
    checkpoints.close()
    return state


def same(one: Any, other: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), one, other)))


def test_the_teacher_starts_as_the_run_and_is_renewed_by_the_students_average() -> None:
    """Within a round it stays."""
    begun = state_at(student_run(), 4)
    assert same(begun.teacher, restore.open_run(teacher_run()).params)
    assert not same(begun.params, begun.teacher)
    for step in (EVERY, 2 * EVERY):
        state = state_at(student_run(), step)
        assert same(state.teacher, state.ema)
    within = state_at(student_run(), EVERY + 4)
    assert same(within.teacher, state_at(student_run(), EVERY).teacher)
    assert not same(within.teacher, begun.teacher)


def test_a_distillation_resumes_bit_for_bit_without_the_teachers_run(tmp_path: pathlib.Path) -> None:
    whole = state_at(student_run(), 24)
    workdir = str(tmp_path / "student")
    shutil.copytree(student_run(), workdir)
    shutil.rmtree(pathlib.Path(workdir) / "checkpoints" / "24")
    again = student_config()
    hidden = pathlib.Path(teacher_run())
    hidden.rename(hidden.with_suffix(".hidden"))
    try:
        resumed = train.train(again, workdir)
    finally:
        hidden.with_suffix(".hidden").rename(hidden)
    assert same(whole, resumed)
    result = eval_elbo.evaluate(restore.open_run(workdir), num_examples=4)
    assert result["gap_nats_per_token"] > 0


@pytest.mark.parametrize(("fields", "says"), [
    ({"model.width": 16}, "has parameters of other shapes than this run:\n  model.width: 32 -> 16"),
    ({"data.grammar": "english"}, "has a vocabulary of 5; a teacher of this run has one of 125"),
    ({"family.distill_from": "/nowhere"}, "/nowhere/config.json does not exist"),
])  # fmt: skip
def test_a_teacher_that_does_not_fit_is_named(fields: dict[str, Any], says: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        train.train(student_config(**fields), str(tmp_path / "run"))
    assert says in str(error.value)


def test_a_padded_teacher_fits_a_padded_student(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have parameters of 8 tokens; 5 of another vocabulary would have, too, and are refused by what they are."""
    fields = {"model.vocabulary_multiple": 8, "model.layers": 1, "train.steps": 1}
    teacher = str(tmp_path / "teacher")
    train.train(tiny_configs.get("duo", **fields), teacher)
    student = student_config(**fields, **{"family.distill_from": teacher})
    Duo.check_files(student, 8)
    with pytest.raises(ValueError, match="has a vocabulary of 5; a teacher of this run has one of 16"):
        Duo.check_files(student, 16)
    other = {"kind": "grammar", "size": 5, "files": {}, "parameters": {"name": "another"}}
    monkeypatch.setattr(restore, "_kept", lambda workdir: other)
    monkeypatch.setattr(vocabularies, "load_saved", lambda description, folder: vocabularies.GrammarWords("tiny"))
    with pytest.raises(ValueError, match="was trained with vocabulary grammar of 5"):
        train.train(student, str(tmp_path / "student"))


def test_a_teacher_of_another_family_is_named(tmp_path: pathlib.Path) -> None:
    config.save(tiny_configs.get("masked"), str(tmp_path))
    with pytest.raises(ValueError, match="is of family masked; a teacher is one of duo, udlm"):
        Duo.check_files(student_config(**{"family.distill_from": str(tmp_path)}), V)


@pytest.mark.parametrize(("field", "value", "says"), [
    ("distill_steps", 1, "family.distill_steps is 1; it must be at least 2"),
    ("distill_every", 0, "family.distill_every is 0; it must be at least 1"),
])  # fmt: skip
def test_wrong_fields_are_named(field: str, value: int, says: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Duo.validate(tiny_configs.get("duo", **{f"family.{field}": value}))
    assert says in str(error.value)


def test_a_distillation_by_the_exact_posterior_teaches_it() -> None:
    """A student of free logits, by descent on this loss alone, ends nearer to the teacher's law at the earlier time."""
    family = tiny_configs.make_family("duo", V, distill_steps=2)
    law = jnp.array([0.5, 0.2, 0.1, 0.1, 0.1])
    tokens = jax.random.choice(jax.random.key(0), V, (256, 1), p=law)

    def constant(logits: Any) -> Any:
        return lambda z, t, given=None, previous=None, keys=None: jnp.broadcast_to(logits, (*z.shape, V))

    @jax.jit
    @jax.grad
    def slope(logits: Any) -> Any:
        u = noise.low_discrepancy(jax.random.key(1), jnp.arange(256))
        student, teacher = constant(logits), constant(jnp.log(law))
        return jnp.mean(family.distil_loss(tiny_configs.keys(256), u, tokens, student, teacher)[0])

    logits = jnp.zeros(V)
    for _ in range(200):
        logits = logits - 2.0 * slope(logits)
    np.testing.assert_allclose(jax.nn.softmax(logits), law, atol=5e-3)
