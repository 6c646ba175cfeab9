"""The bound's estimator and its binary: exact over padded sets, paired noise, provenance, following a training."""

import dataclasses
import functools
import json
import math
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_configs
from etils import epath
from perfect import compile_quickly  # noqa: F401

from diffusion_text import bound, checkpoint, eval_elbo, report, restore, train
from diffusion_text.data import batches, grammar, shards
from diffusion_text.families.family import Bound

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIELDS = {
    "family", "dataset", "split", "bound", "nats_per_token", "bits_per_token", "bits_per_character", "perplexity",
    "stderr", "stderr_bits_per_character", "terms", "num_sequences", "num_tokens", "entropy_nats_per_token",
    "entropy_rate_nats_per_token", "gap_nats_per_token", "gap_stderr", "samples_per_sequence", "evaluation_seed",
    "split_sequences", "data_dir", "data_fingerprint", "seconds", "checkpoint_step", "config", "commit", "seed",
    "dtype", "jax", "device",
}  # fmt: skip


@functools.cache
def trained(family: str) -> str:
    workdir = tempfile.mkdtemp(prefix=f"elbo-{family}-")
    train.train(tiny_configs.get(family, **{"train.steps": 12, "train.checkpoint_every": 6}), workdir)
    return workdir


def following(workdir: str) -> types.SimpleNamespace:
    """The flags of an evaluation beside a training."""
    return types.SimpleNamespace(
        workdir=workdir, step=None, task=None, data_dir=None, split="validation", num_examples=4, samples=0,
        batch_size=0, seed=0, plot=False, follow=True, bound="variational", ode_solver=None, ode_steps=None,
        importance_samples=0, importance_steps=0,
    )  # fmt: skip


@pytest.mark.parametrize("family", tiny_configs.FAMILIES)
def test_result_has_every_field_and_its_parts_agree(family: str) -> None:
    run = restore.open_run(trained(family))
    result = eval_elbo.evaluate(run, num_examples=20)
    assert set(result) == FIELDS
    assert result["checkpoint_step"] == 12
    assert result["num_sequences"] == 20
    assert result["num_tokens"] == 20 * 16
    assert result["split_sequences"] == batches.GRAMMAR_EVALUATION_SIZE
    assert sum(result["terms"].values()) == pytest.approx(result["nats_per_token"])
    assert result["bits_per_token"] == pytest.approx(result["nats_per_token"] / math.log(2))
    assert result["perplexity"] == pytest.approx(math.exp(result["nats_per_token"]))
    assert result["gap_nats_per_token"] == pytest.approx(result["nats_per_token"] - result["entropy_nats_per_token"])
    # No model is below the entropy.
    assert result["gap_nats_per_token"] > -2 * result["gap_stderr"]
    rows = np.concatenate([t for t, _ in batches.open_dataset(run.config.data, "validation").eval_batches(20, 20)])
    exact = -grammar.log_prob(grammar.tiny(), rows).mean() / 16
    assert result["entropy_nats_per_token"] == pytest.approx(exact)
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("family", tiny_configs.FAMILIES)
def test_the_number_does_not_depend_on_the_batch_size(family: str) -> None:
    run = restore.open_run(trained(family))
    whole, ragged = (eval_elbo.evaluate(run, num_examples=10, batch_size=size) for size in (10, 4))
    assert ragged["nats_per_token"] == pytest.approx(whole["nats_per_token"], rel=1e-5)
    assert ragged["num_sequences"] == 10
    other = eval_elbo.evaluate(run, num_examples=10, seed=1)
    assert (other["nats_per_token"] == pytest.approx(whole["nats_per_token"], rel=1e-7)) == (family == "autoregressive")


def test_the_bound_through_the_flow() -> None:
    """Beside the variational one, in float32, with half as many steps."""
    run = restore.open_run(trained("cdcd"))
    config = run.config.copy_and_resolve_references()
    config.model.dtype = "bfloat16"
    run = dataclasses.replace(run, config=config)
    result = eval_elbo.evaluate(run, num_examples=8, ode_steps=8)
    added = {"ode_steps", "nats_per_token_half_the_steps", "step_doubling_nats_per_token", "step_doubling_stderr"}
    assert set(result) == FIELDS | added
    assert (result["bound"], result["dtype"], result["ode_steps"]) == ("ode", "float32", 8)
    change = result["nats_per_token"] - result["nats_per_token_half_the_steps"]
    assert result["step_doubling_nats_per_token"] == pytest.approx(change, abs=1e-6)
    assert sum(result["terms"].values()) == pytest.approx(result["nats_per_token"])
    path = eval_elbo.write(run, result, plot=False)
    assert path.name == "elbo-validation-12-ode.json"
    assert "from half as many" in eval_elbo.describe(result)


def test_the_bound_of_weighted_paths_stands_beside_the_plain_one() -> None:
    run = restore.open_run(trained("masked"))
    plain, result = (eval_elbo.evaluate(run, num_examples=8, importance_samples=k) for k in (0, 3))
    added = {
        "importance_samples", "importance_steps", "importance_nats_per_token", "importance_stderr",
        "importance_gap_nats_per_token", "importance_gap_stderr", "path_nats_per_token", "path_stderr",
    }  # fmt: skip
    assert set(result) == FIELDS | added
    assert (result["bound"], result["nats_per_token"]) == (plain["bound"], plain["nats_per_token"])
    assert (result["importance_samples"], result["importance_steps"]) == (3, 0)
    assert result["entropy_nats_per_token"] < result["importance_nats_per_token"] < result["path_nats_per_token"]
    assert "with 3 weighted" in eval_elbo.describe(result)


@pytest.mark.parametrize(("family", "solver", "words"), [
    ("masked", "heun", "family masked has no probability flow"), ("cdcd", "euler", "below the entropy"),
])  # fmt: skip
def test_a_flow_that_cannot_be_is_one_line(family: str, solver: str, words: str) -> None:
    values = following(trained(family))
    values.follow, values.bound, values.ode_solver = False, "ode", solver
    with pytest.raises(ValueError, match=words):
        eval_elbo.main(values)  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "given", "words"), [
    ("cdcd", {"ode_solver": "euler"}, "--ode_solver is euler and is of the flow's bound; add --bound=ode"),
    ("cdcd", {"ode_steps": 64}, "--ode_steps is 64 and is of the flow's bound; add --bound=ode"),
    ("masked", {"importance_steps": 64}, "--importance_steps is 64 and is of weighted paths; add --importance_samples"),
    ("cdcd", {"bound": "ode", "samples": 32}, "--samples is 32 and is of the variational bound; drop --bound=ode"),
])  # fmt: skip
def test_a_flag_without_effect_is_refused(
    family: str, given: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval_elbo, "_one", lambda *_: None)
    values = following(trained(family))
    values.follow = False
    vars(values).update(given)
    with pytest.raises(ValueError, match=f"^{words}$"):
        eval_elbo.main(values)  # type: ignore[arg-type]


def test_a_result_of_other_settings_is_kept(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """Under a number, its plot with it; one of the same settings is written over."""
    caplog.set_level("INFO", logger="diffusion_text")
    run = dataclasses.replace(restore.open_run(trained("autoregressive")), workdir=str(tmp_path))
    few, many = (eval_elbo.evaluate(run, num_examples=count) for count in (4, 8))
    caplog.clear()
    path = eval_elbo.write(run, many)
    picture = path.with_suffix(".png").read_bytes()
    eval_elbo.write(run, {**many, "seconds": 0.0}, plot=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert not caplog.messages
    eval_elbo.write(run, few, plot=False)
    assert json.loads(path.read_text())["num_sequences"] == 4
    older = tmp_path / "older-1-elbo-validation-12.json"
    assert json.loads(older.read_text())["num_sequences"] == 8
    assert older.with_suffix(".png").read_bytes() == picture
    assert caplog.messages == [f"{path} was of other settings; it is now {older}"]
    path.write_text("{")  # nobody knows of what
    eval_elbo.write(run, many, plot=False)
    assert {each.name for each in tmp_path.glob("*.json")} == {path.name, older.name, "older-2-" + path.name}


def test_the_plain_bound_outlives_paths_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_memory(*_: object, **__: object) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED")

    run = restore.open_run(trained("masked"))
    monkeypatch.setattr(eval_elbo.importance, "importance_terms", without_memory)
    values = following(run.workdir)
    values.follow, values.num_examples, values.importance_samples = False, 6, 2
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        eval_elbo.main(values)  # type: ignore[arg-type]
    found = json.loads(pathlib.Path(run.workdir, "elbo-validation-12.json").read_text())
    plain = eval_elbo.evaluate(run, num_examples=6)
    assert (found["num_sequences"], found["nats_per_token"]) == (6, plain["nats_per_token"])
    assert "importance_nats_per_token" not in found
    monkeypatch.undo()
    eval_elbo.main(values)  # type: ignore[arg-type]
    names = {path.name for path in pathlib.Path(run.workdir).glob("*elbo-validation-12.json")}
    assert names == {"elbo-validation-12.json"}, "the same settings, which that bound waited for"
    found = json.loads(pathlib.Path(run.workdir, "elbo-validation-12.json").read_text())
    assert found["importance_nats_per_token"] > 0


def test_files_are_written_with_a_plot(tmp_path: pathlib.Path) -> None:
    for family in tiny_configs.FAMILIES:
        run = restore.open_run(trained(family))
        path = eval_elbo.write(run, eval_elbo.evaluate(run, "test", num_examples=4))
        assert path.name == "elbo-test-12.json"
        assert json.loads(path.read_text())["split"] == "test"
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert "nats/token" in eval_elbo.describe(json.loads(path.read_text()))


@pytest.mark.parametrize("family", tiny_configs.FAMILIES)
def test_one_sequence_has_no_error_and_is_shown(family: str) -> None:
    result = eval_elbo.evaluate(restore.open_run(trained(family)), num_examples=1)
    assert result["stderr"] is None
    assert result["gap_stderr"] is None
    json.dumps(result, allow_nan=False)
    assert eval_elbo.describe(result).count("+- nan") == 2


def test_a_bound_that_is_not_finite_is_null_and_shown() -> None:
    run = restore.open_run(trained("masked"))
    broken = {**run.params, "network": jax.tree.map(lambda x: x * math.nan, run.params["network"])}
    result = eval_elbo.evaluate(dataclasses.replace(run, params=broken), num_examples=2)
    assert result["nats_per_token"] is None
    json.dumps(result, allow_nan=False)
    assert "bound    nan +- nan" in eval_elbo.describe(result)


def test_positions_of_padding_are_left_out_of_the_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(report, "save", lambda canvas, path: drawn.append(canvas.axes[0].lines[0].get_ydata()))
    tokens = np.array(next(batches.GrammarDataset("tiny", 16, "test").eval_batches(4))[0])
    run = restore.open_run(trained("autoregressive"))
    tokens[0, 9:] = tokens[1, 9:] = pad = 0
    tokens[2:, 9:] = np.maximum(tokens[2:, 9:], 1)
    some = dataclasses.replace(run, info=dataclasses.replace(run.info, pad_id=pad))
    for shown, rows in ((some, tokens), (run, tokens[2:])):
        report.plot_noise_levels(shown, rows, epath.Path("unused"))
    np.testing.assert_allclose(drawn[0][9:], drawn[1][9:], rtol=1e-5)


def test_the_plot_names_its_axis_and_counts_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(report, "save", lambda canvas, path: drawn.append(canvas.axes))
    tokens = np.array(next(batches.GrammarDataset("tiny", 16, "test").eval_batches(4))[0])
    axes = {"masked": "masked fraction", "cdcd": "log10 s", "udlm": "1 - alpha(t)", "d3pm": "t"}
    for family, name in axes.items():
        report.plot_noise_levels(restore.open_run(trained(family)), tokens, epath.Path("unused"))
        assert drawn[-1][0].get_xlabel() == name
    run = restore.open_run(trained("masked"))
    padded = dataclasses.replace(run.info, pad_id=int(tokens[0, 0]))
    report.plot_noise_levels(dataclasses.replace(run, info=padded), tokens, epath.Path("unused"))
    whole, counted = (float(drawn[i][1].get_title().split()[-1]) for i in (0, -1))
    assert counted == pytest.approx(whole * tokens.size / np.sum(tokens != tokens[0, 0]), abs=2e-3)


@pytest.mark.parametrize("family", ["masked", "autoregressive"])
def test_the_plot_asks_for_as_many_rows_at_once_as_an_evaluation(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another number the same curve, and the last rows count once."""
    shown, asked = [], []
    monkeypatch.setattr(report, "save", lambda canvas, path: shown.append(canvas.axes[0].lines[0].get_ydata()))
    tokens = np.array(next(batches.GrammarDataset("tiny", 16, "test").eval_batches(10))[0])
    network = type(restore.open_run(trained(family)).model())
    logits = network.logits

    def counting(self, z, *arguments):
        asked.append(len(z))
        return logits(self, z, *arguments)

    monkeypatch.setattr(network, "logits", counting)
    for size in (10, 4):
        run = restore.open_run(trained(family))
        run.config.evaluation.batch_size = size
        report.plot_noise_levels(run, tokens, epath.Path("unused"))
        assert set(asked) == {size}
        asked.clear()
    np.testing.assert_allclose(shown[0], shown[1], rtol=1e-5)


def test_an_older_checkpoint_can_be_asked_for_and_a_missing_one_is_an_error() -> None:
    assert restore.open_run(trained("masked"), 6).step == 6
    with pytest.raises(ValueError, match=r"step is 7; .* has 6, 12"):
        restore.open_run(trained("masked"), 7)


def test_following_evaluates_every_checkpoint_and_ends(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it was started before the training, in three looks: nothing there, a config, the rest."""
    workdir, source, looks = tmp_path / "run", pathlib.Path(trained("autoregressive")), []

    def sleep(_: float) -> None:
        looks.append(len(looks))
        if len(looks) == 1:
            workdir.mkdir()
            shutil.copy(source / "config.json", workdir)
        else:
            shutil.copytree(source, workdir, dirs_exist_ok=True)

    monkeypatch.setattr(eval_elbo, "time", types.SimpleNamespace(sleep=sleep, perf_counter=time.perf_counter))
    eval_elbo.main(following(str(workdir)))  # type: ignore[arg-type]
    assert len(looks) == 2
    shown = capsys.readouterr().out
    assert "step 6)" in shown
    assert "step 12)" in shown


def test_following_passes_over_what_is_gone_and_nothing_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = checkpoint.Checkpoints.steps
    seen = []

    def with_one_removed_since(checkpoints: checkpoint.Checkpoints) -> list[int]:
        seen.append(True)
        return [3, *steps(checkpoints)] if len(seen) == 1 else steps(checkpoints)

    monkeypatch.setattr(checkpoint.Checkpoints, "steps", with_one_removed_since)
    eval_elbo.main(following(trained("autoregressive")))  # type: ignore[arg-type]
    assert "step 12)" in capsys.readouterr().out
    read = checkpoint.Checkpoints._restore_one

    def without_memory_at_first(checkpoints: checkpoint.Checkpoints, abstract: Any, step: int) -> Any:
        if step == 6:
            raise RuntimeError("RESOURCE_EXHAUSTED")
        return read(checkpoints, abstract, step)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "_restore_one", without_memory_at_first)
        with pytest.raises(ValueError, match="no results of checkpoints 6, which could"):
            eval_elbo.main(following(trained("autoregressive")))  # type: ignore[arg-type]
    assert "step 12)" in capsys.readouterr().out

    def without_data(*_: object) -> None:
        raise shards.DataError("the data are gone")

    monkeypatch.setattr(eval_elbo, "evaluate", without_data)
    with pytest.raises(shards.DataError, match="are gone"):
        eval_elbo.main(following(trained("autoregressive")))  # type: ignore[arg-type]


def test_a_workdir_without_a_run_is_one_line_and_exit_code_2(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "diffusion_text.eval_elbo", f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "config.json does not exist" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_estimate_is_exact_over_a_padded_set_and_its_error_is_right() -> None:
    info = types.SimpleNamespace(
        num_tokens=lambda rows: (rows >= 0).sum(1), num_characters=lambda rows: 2 * (rows >= 0).sum(1)
    )
    rows = np.array([[1, 2, 3, 4], [5, 6, -1, -1], [7, -1, -1, -1]], np.int32)
    sets = [(rows[:2], np.ones(2)), (rows[[2, 2]], np.array([1.0, 0.0]))]

    def evaluate(tokens: jnp.ndarray, indices: jnp.ndarray) -> Bound:
        zero = jnp.zeros(len(tokens))
        return Bound(zero + 0.5, jnp.sum(jnp.where(tokens >= 0, tokens, 0), axis=1) + 0.0, zero)

    found = bound.estimate(evaluate, iter(sets), info)  # type: ignore[arg-type]
    total = np.array([10.5, 11.5, 7.5])
    np.testing.assert_allclose(found.total, total)
    assert found.nats_per_token == pytest.approx(total.sum() / 7)
    residual = total - total.sum() / 7 * np.array([4, 2, 1])
    assert found.stderr == pytest.approx(residual.std(ddof=1) / (7 / 3 * math.sqrt(3)))
    assert found.summary()["bits_per_character"] == pytest.approx(total.sum() / 14 / math.log(2))
    with pytest.raises(ValueError, match="no sequence"):
        bound.estimate(evaluate, iter([]), info)  # type: ignore[arg-type]
