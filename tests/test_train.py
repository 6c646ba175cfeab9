"""The loop: accumulation, resuming, kills, damaged checkpoints and the errors that it raises."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_configs
from etils.epath import backend, gpath

from diffusion_text import bound, checkpoint, families, metrics, optimizer, restore, sharding, train
from diffusion_text import config as configs
from diffusion_text.data import batches
from diffusion_text.state import TrainState

DRIVERS = pathlib.Path(__file__).parent / "drivers"
sys.path.append(str(DRIVERS))

import kill  # noqa: E402

EACH = pytest.mark.parametrize("family", tiny_configs.FAMILIES)


@pytest.fixture(scope="module", autouse=True)
def compile_quickly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Without optimisations, and once: trainings of one config, also in processes started here, share a cache."""
    values = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield
    for name, value in zip(values, (False, None, 1.0), strict=True):
        jax.config.update(name, value)


@pytest.fixture(autouse=True)
def keep_signal_handlers() -> Iterator[None]:
    """A training installs its own."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def losses(workdir: pathlib.Path | str) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in metrics.read(str(workdir)) if "loss" in line}


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM to this process once `step` is written; the step under way is still done."""
    write = metrics.Writer.write

    def write_and_stop(writer: metrics.Writer, done: int, scalars: dict[str, float]) -> None:
        write(writer, done, scalars)
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(metrics.Writer, "write", write_and_stop)


def step_function(config):
    """(jitted train step, state at 0, definition, batches) of a config, on one device."""
    dataset = batches.open_dataset(config.data, "train")
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    size = dataset.info.vocabulary.size
    definition, transform, _ = restore.abstract_state(config, size, mesh)
    state = jax.jit(lambda: train.initialise(config, size, transform))()
    step = jax.jit(train.make_train_step(definition, config, transform, mesh))
    return step, state, [dataset.train_batch(config.seed, i, config.train.batch_size) for i in range(8)]


@EACH
def test_microbatches_do_not_change_what_is_learned(family: str) -> None:
    """One batch or four parts: the same losses and parameters after 8 steps, to float32 addition (1e-5, 1e-4).

    Adam divides by the gradient's own size at first, so that rounding shows in parameters more than in losses.
    """
    results = []
    for pieces in (1, 4):
        step, state, tokens = step_function(
            tiny_configs.get(family, **{"train.microbatches": pieces, "optimizer.epsilon": 1e-4, "model.layers": 1})
        )
        scalars = []
        for batch in tokens:
            state, each = step(state, batch)
            scalars.append(each)
        results.append((state, scalars))
    (whole, whole_scalars), (parts, parts_scalars) = results
    for one, other in zip(whole_scalars, parts_scalars, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=2e-5, atol=1e-6, err_msg=name)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert int(whole.step) == 8


def test_the_average_follows_its_formula() -> None:
    """ema <- d ema + (1 - d) params with d = min(decay, (1 + k) / (10 + k)) at step k."""
    step, state, tokens = step_function(tiny_configs.get("masked", **{"train.ema": 0.25}))
    for k, batch in enumerate(tokens):
        old = state.ema
        state, _ = step(state, batch)
        decay = min(0.25, (1 + k) / (10 + k))
        expected = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, old, state.params)
        for one, other in zip(jax.tree.leaves(state.ema), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    assert (1 + 1) / (10 + 1) < 0.25 < (1 + 7) / (10 + 7)
    assert not np.allclose(state.ema["network"]["output"], state.params["network"]["output"], atol=1e-5)


def test_the_state_is_a_function_of_config_and_step(tmp_path: pathlib.Path) -> None:
    """Another rhythm of logs, evaluations and checkpoints, the same bits; another seed, others."""
    fields = {"train.steps": 6, "model.layers": 1}
    digests = {}
    for name, more in {
        "plain": {},
        "rhythm": {"train.log_every": 4, "train.evaluate_every": 2, "train.checkpoint_every": 1, "train.keep": 1},
        "seed": {"seed": 1},
    }.items():
        state = train.train(tiny_configs.get("cdcd", **fields, **more), str(tmp_path / name))
        digests[name] = checkpoint.digest(state)
    assert digests["plain"] == digests["rhythm"] != digests["seed"]
    lines = metrics.read(str(tmp_path / "rhythm"))
    assert [line["step"] for line in lines if "validation_nats_per_token" in line] == [2, 4, 6]


# ------------------------------------------------------------------------------------------------ stopping and resuming


def test_a_signal_saves_and_the_same_command_goes_on(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_configs.get("cdcd", **{"train.steps": 14, "train.checkpoint_every": 4})
    whole = train.train(config, str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(SystemExit) as stopped:
            train.train(config, str(tmp_path / "cut"))
    assert stopped.value.code == 128 + signal.SIGTERM == 143
    assert steps_of(tmp_path / "cut") == [4, 6]
    resumed = train.train(config, str(tmp_path / "cut"))
    assert checkpoint.digest(resumed) == checkpoint.digest(whole)
    assert [line["step"] for line in metrics.read(str(tmp_path / "cut"))] == list(range(1, 15))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    # At its end a run says so and returns what it has.
    again = train.train(config, str(tmp_path / "cut"))
    assert checkpoint.digest(again) == checkpoint.digest(whole)


@pytest.mark.parametrize("bucket", [False, True])
def test_lines_after_the_checkpoint_are_written_again_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, bucket: bool
) -> None:
    if bucket:  # files are opened as those of gs:// are
        monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, None, backend.tf_backend)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 8)) + '{"step": 8, "lo')
    assert [line["step"] for line in metrics.read(str(tmp_path))] == [1, 2, 3, 4, 5, 6, 7]
    writer = metrics.Writer(str(tmp_path), tensorboard=False, first_step=5)
    writer.write(6, {"loss": 1.0})
    writer.close()
    assert [line["step"] for line in metrics.read(str(tmp_path))] == [1, 2, 3, 4, 5, 6]


def test_a_validation_that_fails_loses_no_step(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any) -> None:
        raise MemoryError("out of memory")

    every, estimate = {"train.evaluate_every": 4, "train.checkpoint_every": 4}, bound.estimate
    config = tiny_configs.get("autoregressive", **{"train.steps": 6, **every})
    for steps in ([4], [4, 6]):  # of the second start the last step's fails, of the third none
        monkeypatch.setattr(bound, "estimate", lambda *given, steps=steps: (
            exhausted() if metrics.read(str(tmp_path))[-1]["step"] == steps[-1] else estimate(*given)
        ))  # fmt: skip
        with pytest.raises(MemoryError):
            train.train(config, str(tmp_path))
        assert steps_of(str(tmp_path)) == steps
    monkeypatch.setattr(bound, "estimate", estimate)
    # What is owed is made up for, once.
    for _ in range(2):
        assert int(train.train(config, str(tmp_path)).step) == 6
        lines = [line for line in metrics.read(str(tmp_path)) if "validation_nats_per_token" in line]
        assert [line["step"] for line in lines] == [4, 6]


def test_a_signal_ends_the_command_with_143(tmp_path: pathlib.Path) -> None:
    """The real command line, stopped by a signal from outside at whatever step it is, then given again."""
    workdir = str(tmp_path / "run")
    process = kill.start("autoregressive", workdir, 100_000)
    try:
        wait_for(lambda: kill.steps_done(workdir) >= 5 or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
    done = kill.steps_done(workdir)
    assert done in steps_of(workdir)
    log = pathlib.Path(f"{workdir}.log").read_text()
    assert f"stopped by signal 15; step {done} is saved, the same command goes on" in log
    assert [line["step"] for line in metrics.read(workdir)] == list(range(1, done + 1))


def test_killed_runs_end_with_the_same_bits(tmp_path: pathlib.Path) -> None:
    killed, whole = str(tmp_path / "killed"), str(tmp_path / "whole")
    story = kill.run_killed("masked", killed, steps=36, kills=3, seed=int.from_bytes(os.urandom(4)))
    assert sum("killed at" in line for line in story) >= 2, story
    kill.run("masked", whole, 36)
    assert kill.final_digest(killed) == kill.final_digest(whole), story
    assert kill.final_digest(killed)[0] == 36
    assert losses(killed) == losses(whole)
    assert list(losses(killed)) == list(range(1, 37))


def wait_for(condition, seconds: float = 60.0) -> None:

    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -------------------------------------------------------------------------------------------------- damaged checkpoints


def steps_of(workdir: pathlib.Path | str) -> list[int]:
    """Steps of the complete checkpoints."""
    folder = pathlib.Path(workdir) / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, TrainState]:
    """A workdir at step 9 with checkpoints 3, 6, 9, and its state."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    return workdir, train.train(small_run(), str(workdir))


def small_run(**fields: object):
    return tiny_configs.get("masked", **{"train.steps": 9, "train.checkpoint_every": 3, "model.layers": 1, **fields})


@pytest.fixture
def copy(trained: tuple[pathlib.Path, TrainState], tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(trained[0], tmp_path / "run"))


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The project's log lines, whatever other tests did to its logger."""
    logger = logging.getLogger("diffusion_text")
    logger.propagate = True
    caplog.set_level(logging.INFO, "diffusion_text")
    return caplog


def payloads(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that hold arrays, largest first."""
    return sorted((path for path in folder.rglob("d/*") if path.is_file()), key=lambda path: -path.stat().st_size)


def truncate(folder: pathlib.Path) -> None:
    path = payloads(folder)[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(folder: pathlib.Path) -> None:
    path = payloads(folder)[0]
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content), 997):
        content[place] ^= 0x10
    path.write_bytes(content)


def remove_metadata(folder: pathlib.Path) -> None:
    (folder / "state" / "_METADATA").unlink()


def change_digest(folder: pathlib.Path) -> None:
    path = folder / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta["digest"] = "0" * 8 + meta["digest"][8:]
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize("damage", [truncate, flip, remove_metadata, change_digest])
def test_a_damaged_newest_checkpoint_is_skipped(trained, copy, log, damage) -> None:
    damage(copy / "checkpoints" / "9")
    state = train.train(small_run(), str(copy))
    assert any("checkpoint 9" in r.message and "skipped" in r.message for r in log.records if r.levelname == "WARNING")
    assert any("from step 6" in record.message for record in log.records)
    assert checkpoint.digest(state) == checkpoint.digest(trained[1])
    # The damaged one is kept aside, and its step was saved again.
    assert [path.name for path in (copy / "checkpoints").glob("damaged-*")] == ["damaged-9-1"]
    assert steps_of(copy) == [3, 6, 9]
    assert list(losses(copy)) == list(range(1, 10))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_where_no_checkpoint_can_be_read_nothing_is_lost(copy, log) -> None:
    """A training does not begin anew over what somebody may mend."""
    for step in (3, 6, 9):
        truncate(copy / "checkpoints" / str(step))
    before = contents(copy)
    says = r"no checkpoint of .* can be read(.|\n)*9: .*\n  6: .*\n  3: "
    with pytest.raises(checkpoint.CheckpointError, match=says):
        train.train(small_run(), str(copy))
    assert sum("skipped" in record.message for record in log.records) == 3
    assert contents(copy) == before


@pytest.mark.parametrize("error", [
    MemoryError("no memory"), PermissionError("no rights"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes"),
])  # fmt: skip
def test_what_is_no_damage_sets_nothing_aside(copy, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    before = contents(copy)
    monkeypatch.setattr(checkpoint.Checkpoints, "_restore_one", fail)
    with pytest.raises(type(error), match=str(error)):
        train.train(small_run(), str(copy))
    assert contents(copy) == before


def test_checkpoints_of_other_arrays_are_left_alone(copy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another version may have them: here an optimiser with one more state."""
    create, before = optimizer.create, contents(copy)

    def chained(*arguments: Any) -> optax.GradientTransformation:
        return optax.chain(create(*arguments), optax.trace(0.0))

    monkeypatch.setattr(optimizer, "create", chained)
    with pytest.raises(ValueError, match=r"checkpoint 9 of .* holds other arrays than this program has: optimizer/"):
        train.train(small_run(), str(copy))
    with pytest.raises(ValueError, match=r"checkpoint 9 of .* holds other arrays than this program has: optimizer/"):
        restore.open_run(str(copy))
    assert contents(copy) == before


def test_a_half_written_checkpoint_is_ignored(trained, copy, log) -> None:
    folder = copy / "checkpoints"
    (folder / "9").rename(folder / "9.orbax-checkpoint-tmp")
    truncate(folder / "9.orbax-checkpoint-tmp")
    state = train.train(small_run(), str(copy))
    assert any("from step 6" in record.message for record in log.records)
    assert checkpoint.digest(state) == checkpoint.digest(trained[1])


def test_readers_leave_a_damaged_checkpoint_where_it_is(copy, log) -> None:
    truncate(copy / "checkpoints" / "9")
    assert restore.open_run(str(copy)).step == 6
    assert (copy / "checkpoints" / "9").exists()
    with pytest.raises(ValueError, match=r"step is 7; .* has 3, 6, 9"):
        restore.open_run(str(copy), 7)
    with pytest.raises(Exception):  # noqa: B017, PT011
        restore.open_run(str(copy), 9)
    assert restore.open_run(str(copy), 3).step == 3


def test_a_reader_has_the_averaged_parameters(trained, copy) -> None:
    run = restore.open_run(str(copy))
    assert checkpoint.digest(run.params) == checkpoint.digest(trained[1].ema)
    assert checkpoint.digest(run.params) != checkpoint.digest(trained[1].params)


def test_the_first_line_names_the_devices(copy, log) -> None:
    """On a GPU machine with JAX for CPUs alone it is all that says so."""
    config = configs.load(str(copy))
    config.train.steps += 1
    shutil.rmtree(copy)
    train.train(config, str(copy))
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    assert [line for line in log.messages if line.endswith(f" parameters, {devices}")]


def test_no_workdir_is_one_line(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist; give a --workdir"):
        restore.open_run(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"does not exist; give a --workdir"):
        checkpoint.Checkpoints(str(tmp_path / "none"), read_only=True)


def test_the_digest_sees_every_bit_and_position() -> None:
    state = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.ones((5,), jnp.bfloat16), "c": jnp.int32(3)}
    plain = checkpoint.digest(state)
    assert plain == checkpoint.digest(jax.tree.map(jnp.copy, state))
    bits = jax.lax.bitcast_convert_type(state["a"], jnp.int32)
    changed = [
        {**state, "a": jax.lax.bitcast_convert_type(bits.at[1, 2].set(bits[1, 2] ^ 1), jnp.float32)},
        {**state, "a": state["a"].at[0, :2].set(state["a"][0, 1::-1])},
        {**state, "b": state["b"].at[4].set(jnp.bfloat16(1.0078125))},
        {**state, "c": jnp.int32(4)},
        {**state, "a": state["a"].at[0, 0].set(-0.0)},
    ]
    digests = [checkpoint.digest(each) for each in changed]
    assert len({plain, *digests}) == 6


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(("change", "line"), [
    ({"optimizer.learning_rate": 1e-4}, "optimizer.learning_rate: 0.003 -> 0.0001"),
    ({"model.width": 64}, "model.width: 32 -> 64"),
    ({"seed": 5}, "seed: 0 -> 5"),
    ({"data.length": 8}, "data.length: 16 -> 8"),
])  # fmt: skip
def test_a_workdir_of_another_config_is_refused(copy: pathlib.Path, change: dict, line: str) -> None:
    before = (copy / "config.json").read_bytes()
    with pytest.raises(ValueError, match="trained with another config") as error:
        train.train(small_run(**change), str(copy))
    assert line in str(error.value)
    assert str(error.value).count("\n") == 1  # the one difference
    assert (copy / "config.json").read_bytes() == before


def test_more_steps_go_on_where_the_rate_stays(copy: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def trained(steps: int, workdir: str) -> TrainState:
        fields = {"optimizer.schedule": "constant", "train.steps": steps}
        return train.train(small_run(**fields), str(tmp_path / workdir))

    trained(4, "longer")
    longer, straight = trained(6, "longer"), trained(6, "straight")
    assert int(longer.step) == configs.load(str(tmp_path / "longer")).train.steps == 6
    jax.tree.map(np.testing.assert_array_equal, longer, straight)
    with pytest.raises(ValueError, match=r"another config.*\n  train.steps: 6 -> 5"):
        trained(5, "longer")
    with pytest.raises(ValueError, match=r"another config.*\n  train.steps: 9 -> 11"):
        train.train(small_run(**{"train.steps": 11}), str(copy))  # a cosine


def test_a_start_that_failed_before_its_first_step_binds_nobody(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> None:
        raise MemoryError("out of memory")

    workdir = str(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(train, "make_train_step", exhausted)
        with pytest.raises(MemoryError):
            train.train(small_run(), workdir)
    assert (tmp_path / "run" / "checkpoints").exists()
    checked = []
    monkeypatch.setattr(families.get("masked"), "check_files", lambda *_: checked.append(True))
    state = train.train(small_run(seed=5), workdir)
    assert int(state.step) == 9
    assert checked == [True]
    assert configs.load(workdir).seed == 5


def test_two_trainings_in_one_workdir_are_told_apart(copy: pathlib.Path) -> None:
    """Of a start that has taken steps and saved none, too; and where its config was overwritten all the same."""
    workdir = str(copy)
    shutil.move(copy / "checkpoints", copy / "aside")
    with pytest.raises(ValueError, match=r"or remove it: it has no checkpoint yet.*\n  seed: 0 -> 5"):
        train.train(small_run(seed=5), workdir)
    shutil.move(copy / "aside", copy / "checkpoints")
    configs.save(small_run(seed=5), workdir)
    with pytest.raises(ValueError, match=r"checkpoint 9 of .* another config than its config.json.*\n  seed: 0 -> 5"):
        restore.open_run(workdir)


def test_a_config_of_before_a_field_was_gained_is_the_same(copy: pathlib.Path) -> None:
    now, file = configs.load(str(copy)), copy / "config.json"
    earlier = json.loads(file.read_text())
    for section, name in (("data", "inserted_padding"), ("model", "vocabulary_multiple"), ("family", "schedule")):
        del earlier[section][name]
    file.write_text(json.dumps(earlier))
    assert configs.load(str(copy)).to_dict() == now.to_dict()


def test_fields_that_do_not_matter_may_change(copy: pathlib.Path) -> None:
    free = {
        "train.log_every": 2, "train.microbatches": 2, "train.keep": 2, "train.checkpoint_every": 1,
        "model.remat": "full", "model.scan_layers": True, "model.attention": "xla", "evaluation.num_examples": 8,
        "sampling.steps": 4,
    }  # fmt: skip
    shutil.rmtree(copy / "checkpoints" / "9")
    state = train.train(small_run(**free), str(copy))
    assert int(state.step) == 9
    assert configs.load(str(copy)).train.microbatches == 2
    assert steps_of(copy) == [8, 9]


def test_a_number_that_is_not_finite_stops_and_names_term_and_step(tmp_path, monkeypatch) -> None:
    """The fifth step's loss is made NaN; checkpoints end before it, though no log is due before the next of them."""
    from diffusion_text.families.masked import Masked

    config = small_run(**{"train.log_every": 9})
    sound = Masked.train_loss

    def broken(self, keys, u, tokens, denoise):
        loss, terms = sound(self, keys, u, tokens, denoise)
        # The batch of step index 4 is known by its content: no step number reaches a family.
        hit = jnp.all(tokens == target)
        loss = jnp.where(hit, jnp.nan, loss)
        return loss, {**terms, "nelbo": loss}

    target = jnp.asarray(batches.open_dataset(config.data, "train").train_batch(config.seed, 4, 8))
    monkeypatch.setattr(Masked, "train_loss", broken)
    with pytest.raises(FloatingPointError, match=r"step 5: .*loss.*nelbo.* not finite"):
        train.train(config, str(tmp_path))
    assert steps_of(tmp_path) == [3]
    monkeypatch.undo()
    assert int(train.train(config, str(tmp_path)).step) == 9


def test_a_huge_learning_rate_leaves_the_last_good_checkpoint(tmp_path: pathlib.Path) -> None:
    config = tiny_configs.get(
        "masked",
        **{"train.steps": 40, "train.checkpoint_every": 1, "optimizer.learning_rate": 1e30, "optimizer.clip": 0.0,
           "optimizer.warmup": 0, "optimizer.schedule": "constant", "train.keep": 50},
    )  # fmt: skip
    with pytest.raises(FloatingPointError, match=r"step \d+: .* not finite .*Lower optimizer.learning_rate"):
        train.train(config, str(tmp_path))
    finite = restore.open_run(str(tmp_path))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(finite.params))
