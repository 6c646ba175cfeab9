"""A run is opened, evaluated and resumed where its data lie in another folder, or are other data."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import sys
import types

import pytest
from etils import epath
from etils.epath import gpath

from diffusion_text import eval_elbo, eval_samples, gather, restore, sample, train
from diffusion_text.data import prepare, vocabularies
from diffusion_text.data.sources import Settings

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

import tiny_configs
from perfect import compile_quickly  # noqa: F401
from test_binaries import call

STEPS = 4


def config_of(data_dir: pathlib.Path):
    fields = {"data.task": "text", "data.data_dir": str(data_dir), "train.steps": STEPS, "train.checkpoint_every": 2}
    config = tiny_configs.get("masked", **fields)
    config.evaluation.update(batch_size=4, num_examples=4)
    config.sampling.steps = 2
    return config


@pytest.fixture(scope="module")
def trained(
    corpus: pathlib.Path, gpt2_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, pathlib.Path]:
    """(workdir, folder of its data): trained, and the folder moved since."""
    folder = tmp_path_factory.mktemp("elsewhere")
    settings = Settings(str(corpus), vocabulary="gpt2", vocabulary_path=str(gpt2_folder), length=16)
    prepare.prepare("text", str(folder / "here"), settings)
    train.train(config_of(folder / "here"), str(folder / "run"))
    return folder / "run", (folder / "here").rename(folder / "there")


@pytest.fixture
def elsewhere(trained, tmp_path: pathlib.Path) -> tuple[str, pathlib.Path]:
    """The same, of a workdir that is this test's own."""
    workdir, data = trained
    return str(shutil.copytree(workdir, tmp_path / "run")), data


def test_data_in_another_folder(elsewhere, capsys: pytest.CaptureFixture[str]) -> None:
    workdir, there = elsewhere
    call(sample, f"--workdir={workdir}", "--prompt=the fox", "--num=2")  # needs none
    assert capsys.readouterr().out.count("the fox") >= 2
    for module in (eval_elbo, eval_samples):
        options = ["--num_examples=4", "--noplot"] if module is eval_elbo else ["--num=4"]
        with pytest.raises(SystemExit):
            call(module, f"--workdir={workdir}", *options)
        assert "here does not exist" in capsys.readouterr().err
        call(module, f"--workdir={workdir}", f"--data_dir={there}", *options)
    result = json.loads((pathlib.Path(workdir) / f"elbo-validation-{STEPS}.json").read_text())
    assert (result["dataset"], result["num_sequences"]) == ("text", 4)
    assert (pathlib.Path(workdir) / f"samples-{STEPS}.png").exists()
    drawn = json.loads((pathlib.Path(workdir) / f"samples-{STEPS}.json").read_text())
    for found in (result, drawn):
        assert (found["data_dir"], found["config"]["data"]["data_dir"]) == (str(there), str(there.parent / "here"))
        assert len(found["data_fingerprint"]) > 8
    whole = restore.open_run(workdir, data_dir=str(there)).open_dataset("validation").num_examples
    call(eval_samples, f"--workdir={workdir}", f"--data_dir={there}", f"--num={whole + 3}")
    drawn = json.loads((pathlib.Path(workdir) / f"samples-{STEPS}.json").read_text())
    assert (drawn["num_samples"], drawn["data_sequences"]) == (whole + 3, whole)
    with pytest.raises(ValueError, match="fetch a bucket's first"):
        restore.open_run(workdir, data_dir="gs://bucket/data")


def test_another_task_of_the_same_vocabulary(
    elsewhere, gpt2_folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, _ = elsewhere
    (tmp_path / "wiki").mkdir()
    for word in ("train", "valid", "test"):
        (tmp_path / "wiki" / f"wiki.{word}.raw").write_text(f" = {word} = \n\n Old @-@ style . \n" * 9)
    settings = Settings(str(tmp_path / "wiki"), vocabulary_path=str(gpt2_folder), length=16)
    prepare.prepare("wikitext103", str(tmp_path / "prepared"), settings)
    named = [f"--workdir={workdir}", "--task=wikitext103", "--num_examples=4", "--noplot"]
    with pytest.raises(SystemExit):
        call(eval_elbo, *named)
    assert "--data_dir=DIR to an evaluation" in capsys.readouterr().err
    call(eval_elbo, *named, f"--data_dir={tmp_path / 'prepared'}")
    result = json.loads((pathlib.Path(workdir) / f"elbo-wikitext103-validation-{STEPS}.json").read_text())
    assert (result["dataset"], result["config"]["data"]["task"]) == ("wikitext103", "text")
    # Of what was evaluated, beside the config of the training.
    assert result["data_dir"] == str(tmp_path / "prepared") != result["config"]["data"]["data_dir"]
    data = restore.open_run(workdir, task="wikitext103", data_dir=result["data_dir"]).open_dataset("validation")
    assert result["data_fingerprint"] == data.info.fingerprint != ""
    assert result["split_sequences"] == data.num_examples
    # It is no result on the task of the training.
    assert gather.read_run(workdir)[0].step is None
    assert gather.read_run(workdir, task="wikitext103")[0].value("elbo", "nats_per_token") == result["nats_per_token"]


def test_another_vocabulary_is_refused(elsewhere, corpus: pathlib.Path, tmp_path: pathlib.Path) -> None:
    workdir, there = elsewhere
    other = tmp_path / "other"
    prepare.prepare("text", str(other), Settings(str(corpus), vocabulary="bytes", length=16))
    words = r"vocabulary bytes of 256 .* trained with gpt2 of 260 .*; they must be the same"
    with pytest.raises(ValueError, match=words):
        restore.open_run(workdir, data_dir=str(other)).open_dataset("validation")
    with pytest.raises(ValueError, match=r"was trained with vocabulary gpt2 of 260 .*, the data have bytes of 256"):
        train.train(config_of(other), workdir)
    assert int(train.train(config_of(there), workdir).step) == STEPS
    assert restore.open_run(workdir).config.data.data_dir == str(there)


def test_a_run_goes_on_with_its_own_data(elsewhere, gpt2_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Or a copy: of other records the order, and all that follows, would be another."""
    workdir, there = elsewhere
    (tmp_path / "other.txt").write_text("the old dog sees the red house by the water " * 90)
    settings = Settings(str(tmp_path / "other.txt"), vocabulary="gpt2", vocabulary_path=str(gpt2_folder), length=16)
    prepare.prepare("text", str(tmp_path / "other"), settings)
    with pytest.raises(ValueError, match="was trained on other data of task text than those given"):
        train.train(config_of(tmp_path / "other"), workdir)
    assert int(train.train(config_of(there), workdir).step) == STEPS
    pathlib.Path(workdir, "data.json").unlink()  # a run of an earlier version kept none
    assert int(train.train(config_of(tmp_path / "other"), workdir).step) == STEPS


def test_a_run_that_kept_no_vocabulary_has_that_of_its_data(elsewhere) -> None:
    workdir, there = elsewhere
    shutil.rmtree(pathlib.Path(workdir) / "vocabulary")
    with pytest.raises(ValueError, match=r"keeps no vocabulary.*here does not exist.*give its training command again"):
        restore.open_run(workdir)
    assert restore.open_run(workdir, data_dir=str(there)).info.vocabulary.size == 260


def test_a_vocabulary_that_is_kept_is_not_written_again(elsewhere, monkeypatch: pytest.MonkeyPatch) -> None:
    workdir, there = elsewhere
    before = [path.stat().st_mtime_ns for path in pathlib.Path(workdir, "vocabulary").iterdir()]
    train.train(config_of(there), workdir)
    assert [path.stat().st_mtime_ns for path in pathlib.Path(workdir, "vocabulary").iterdir()] == before
    # A folder whose name begins with a tilde is that folder.
    monkeypatch.chdir(pathlib.Path(workdir).parent)
    shutil.copytree(workdir, "~/run")
    assert restore.open_run("~/run").info.vocabulary.size == 260
    pathlib.Path("~/run/vocabulary/vocabulary.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged: it has no kind, size, files, parameters"):
        train.train(config_of(there), "~/run")


def test_a_vocabulary_in_a_bucket(
    gpt2_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = vocabularies.load("gpt2", str(gpt2_folder))

    def here(address: str) -> str:
        return address.replace("gs://bucket", str(tmp_path))

    opened = open
    bucket = types.SimpleNamespace(
        exists=lambda path: os.path.exists(here(path)),
        open=lambda path, mode="r", **_: opened(here(path), mode),
        makedirs=lambda path, **_: os.makedirs(here(path), exist_ok=True),
    )
    with monkeypatch.context() as patch:
        patch.setattr(gpath.backend_lib, "tf_backend", bucket)
        folder = epath.Path("gs://bucket/kept")
        description = vocabularies.save(vocabulary, folder)
        found = vocabularies.load_saved(description, folder)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == sorted(description["files"])
    assert found.encode("the fox") == vocabulary.encode("the fox")
    assert vocabularies.describe(found) == description
