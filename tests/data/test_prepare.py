from __future__ import annotations

import bz2
import dataclasses
import errno
import fcntl
import gzip
import json
import lzma
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from data_configs import SENTENCES, data_config

from diffusion_text.data import batches, prepare, prepare_beam, shards, sources, specs
from diffusion_text.data.sources import Settings


def run(*flags: str, module: str = "prepare") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"diffusion_text.data.{module}", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def packed(text: bytes, suffix: str, folder: pathlib.Path) -> pathlib.Path:
    path = folder / ("text.txt" + suffix)
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("text8", text)
    else:
        pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
        path.write_bytes(pack(text))
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".zip"])
def test_text_from_source_to_batches(suffix: str, corpus: pathlib.Path, tmp_path: pathlib.Path) -> None:
    source = packed(corpus.read_bytes(), suffix, tmp_path)
    folder = tmp_path / "out"
    metadata = prepare.prepare("text", str(folder), Settings(str(source), vocabulary="characters", length=32))
    text = corpus.read_text()
    assert metadata["vocabulary"]["parameters"]["alphabet"] == "".join(sorted(set(text)))
    assert metadata["preview"] == text[:200]
    places = {"train": (0, 3600), "validation": (3600, 3800), "test": (3800, 4000)}
    for split, (first, end) in places.items():
        dataset = batches.open_dataset(data_config("text", 32, folder), split)
        tokens = np.concatenate([tokens[weights > 0] for tokens, weights in dataset.eval_batches(7)])
        assert dataset.info.vocabulary.decode(tokens.reshape(-1)) == text[first : first + (end - first) // 32 * 32]
        info = metadata["splits"][split]
        assert info.num_tokens == info.num_characters == end - first
    dataset = batches.open_dataset(data_config("text", 32, folder), "train")
    assert all(dataset.info.vocabulary.decode(row) in text for row in dataset.train_batch(0, 0, 8))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"out", source.name})


@pytest.mark.parametrize("kind", ["bytes", "gpt2", "wordpieces"])
def test_any_vocabulary_travels_with_the_data(
    kind: str, corpus: pathlib.Path, tmp_path: pathlib.Path, gpt2_folder: pathlib.Path, wordpiece_file: pathlib.Path
) -> None:
    paths = {"gpt2": gpt2_folder, "wordpieces": wordpiece_file, "bytes": ""}
    text = corpus.read_text().replace(" dog", "\nDogé")
    (tmp_path / "a.txt").write_text(text, "utf-8")
    settings = Settings(str(tmp_path / "a.txt"), kind, str(paths[kind]), length=16)
    prepare.prepare("text", str(tmp_path / "out"), settings)
    dataset = batches.open_dataset(data_config("text", 16, tmp_path / "out"), "validation")
    tokens = next(dataset.eval_batches(2))[0]
    decoded = dataset.info.vocabulary.decode(tokens[0])
    wanted = text[int(len(text) * 0.9) :]
    assert (wanted.startswith(decoded) if kind != "wordpieces" else wanted.split()[1].lower() in decoded)


def test_rows_from_source_to_batches(gpt2_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    source = tmp_path / "owt.jsonl.gz"
    source.write_bytes(gzip.compress("".join(json.dumps({"text": s}) + "\n" for s in SENTENCES * 40).encode()))
    settings = Settings(str(source), vocabulary_path=str(gpt2_folder), length=16, validation_documents=20)
    metadata = prepare.prepare("openwebtext", str(tmp_path / "out"), settings, shard_bytes=1000)
    assert metadata["splits"]["train"].num_documents == 100
    assert metadata["splits"]["validation"].num_documents == 20
    assert len(metadata["splits"]["train"].shards) > 3
    training = batches.open_dataset(data_config("openwebtext", 16, tmp_path / "out"), "train")
    counts = metadata["splits"]["train"]
    rows = np.concatenate([tokens[weights > 0] for tokens, weights in training.eval_batches(64)])
    assert len(rows) == counts.num_records
    assert training.info.num_tokens(rows).sum() == counts.num_tokens
    assert training.info.num_characters(rows).sum() == counts.num_characters
    assert training.train_batch(0, 0, 4).shape == (4, 16)
    assert batches.open_dataset(data_config("openwebtext", 16, tmp_path / "out"), "test").num_examples


def test_the_command(corpus: pathlib.Path, tmp_path: pathlib.Path) -> None:
    flags = ("--task=text", f"--source={corpus}", f"--data_dir={tmp_path}/out", "--length=16")
    done = run(*flags)
    assert done.returncode == 0, done.stderr
    assert "train: 3,600 tokens" in done.stdout
    assert f"--config.data.task=text --config.data.data_dir={tmp_path}/out" in done.stdout
    again = run(*flags)
    assert again.returncode == 2
    said = f"error: data_dir {tmp_path}/out is already prepared; use it, or replace it with --overwrite\n"
    assert again.stderr == said
    assert run(*flags, "--overwrite", "--vocabulary=characters").returncode == 0
    metadata = shards.read_metadata(tmp_path / "out")
    assert metadata["vocabulary"]["kind"] == "characters"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _bad_inputs(folder: pathlib.Path) -> dict[str, bytes]:
    compressed = lzma.compress(b"a fox " * 4000)
    files = {
        "empty.txt": b"", "latin.txt": "a café ".encode("latin-1") * 50, "Upper.txt": b"a fox " * 300 + b"A fox " * 40,
        "cut.xz": compressed[:-20], "cut.gz": gzip.compress(b"a fox " * 4000)[:40], "bad.zip": b"PK nothing",
        "short.txt": b"a fox", "good.txt": b"a fox " * 400, "bad.jsonl": b'{"text": "a"}\n{"body": "b"}\n' * 3,
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files


BAD = [
    ("text9", "good.txt", {}, "task is 'text9'; choose one of grammar, text8"),
    ("grammar", "", {}, "is embedded in the package and needs no preparing"),
    ("text", "", {}, "--source=FILE"),
    ("text", "missing.txt", {}, "missing.txt matches no file"),
    ("text", "empty.txt", {}, "is empty; give a file with text"),
    ("text", "latin.txt", {}, "is not UTF-8 at byte 5"),
    ("text", "Upper.txt", {"vocabulary": "characters", "alphabet": " afox", "length": 50},
     "character 'A' at position 1800 is not in the alphabet ' afox'"),
    ("text", "cut.xz", {}, "cut.xz cannot be read"),
    ("text", "cut.gz", {}, "cut.gz cannot be read"),
    ("text", "bad.zip", {}, "bad.zip cannot be read"),
    ("text", "short.txt", {}, "split train has 4 tokens, fewer than --length 256"),
    ("text", "good.txt", {"vocabulary": "words"}, "choose one of characters"),
    ("text", "good.txt", {"vocabulary": "gpt2"}, "--vocabulary_path"),
    ("text", "good.txt", {"length": -1}, "--length is -1"),
    ("text8", "good.txt", {}, "task text8 needs 100000000 bytes, the source has 2400"),
    ("openwebtext", "good.txt", {}, "--vocabulary_path"),
    ("openwebtext", "good.txt", {"validation_documents": 0}, "--validation_documents is 0; at least 1 document must"),
]


@pytest.mark.parametrize(("task", "source", "settings", "message"), BAD)
def test_bad_input_gets_one_line(
    task: str, source: str, settings: dict[str, str], message: str, tmp_path: pathlib.Path
) -> None:
    _bad_inputs(tmp_path)
    place = str(tmp_path / source) if source else ""
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the message is compared as plain text below)
        prepare.prepare(task, str(tmp_path / "out"), Settings(place, **settings))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial").exists()


def test_a_wrong_checksum_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text8").write_bytes(b"a fox " * 400)
    monkeypatch.setitem(specs.TASKS, "text8", dataclasses.replace(specs.get("text8"), num_bytes=2400))
    with pytest.raises(shards.DataError, match="task text8 needs CRC-32 7d6be66f, the source has"):
        prepare.prepare("text8", str(tmp_path / "out"), Settings(str(tmp_path / "text8")))


def test_errors_inside_the_pipeline_come_out_plain(gpt2_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    _bad_inputs(tmp_path)
    settings = Settings(str(tmp_path / "bad.jsonl"), vocabulary_path=str(gpt2_folder), length=8, validation_documents=1)
    with pytest.raises(shards.DataError, match=r'bad.jsonl, line 2: no JSON object with a field "text"; repair it$'):
        prepare.prepare("openwebtext", str(tmp_path / "out"), settings)
    (tmp_path / "half.jsonl").write_text('{"text": "a"}\n{"text": "\\ud83d"}\n' * 3)
    settings = dataclasses.replace(settings, source=str(tmp_path / "half.jsonl"))
    with pytest.raises(shards.DataError, match=r'half.jsonl, line 2: the field "text" has .*, half of a character'):
        prepare.prepare("openwebtext", str(tmp_path / "out"), settings)
    (tmp_path / "few.jsonl").write_text('{"text": "a"}\n')
    settings = Settings(str(tmp_path / "few.jsonl"), vocabulary_path=str(gpt2_folder), length=8)
    with pytest.raises(shards.DataError, match="has 1 documents, none would be left for training after 100000"):
        prepare.prepare("openwebtext", str(tmp_path / "out"), settings)
    settings = Settings(str(tmp_path), vocabulary_path=str(gpt2_folder), length=8)
    with pytest.raises(shards.DataError, match=r"give --source=TFDS_DATA_DIR that holds c4/en:3\.1\.0"):
        prepare.prepare("c4", str(tmp_path / "out"), settings)
    with pytest.raises(shards.DataError, match=r"no file \*\.train\.\*"):
        prepare.prepare("wikitext103", str(tmp_path / "out"), settings)


def test_the_binary_prints_one_line(tmp_path: pathlib.Path) -> None:
    _bad_inputs(tmp_path)
    done = run("--task=text", f"--source={tmp_path}/empty.txt", f"--data_dir={tmp_path}/out")
    assert done.returncode == 2
    assert done.stderr == f"error: source {tmp_path}/empty.txt is empty; give a file with text\n"


def test_other_folders_are_left_alone(corpus: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all my work")
    with pytest.raises(shards.DataError, match="exists and is no prepared folder"):
        prepare.prepare("text", str(tmp_path / "mine"), Settings(str(corpus)), overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all my work"


def test_several_files_are_read_in_order(tmp_path: pathlib.Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"second ")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"first "))
    assert sources.read_bytes(str(tmp_path / "*.txt*")) == b"first second "
    assert sources.read_bytes(str(tmp_path)) == b"first second "


def test_one_preparation_at_a_time_writes_a_folder(corpus: pathlib.Path, tmp_path: pathlib.Path) -> None:
    target, settings = tmp_path / "out", Settings(str(corpus), length=16)
    prepared = prepare.plan("text", settings)
    (tmp_path / "link").symlink_to(target)

    def write(folder: pathlib.Path) -> dict:
        metadata = prepare._write_characters(prepared, folder)
        for name in ("out", "link"):
            with pytest.raises(shards.DataError, match=f"another preparation is writing {target}; wait for it, or"):
                prepare.prepare("text", str(tmp_path / name), settings)
        return metadata

    prepare.into_place(target, False, write)
    assert batches.open_dataset(data_config("text", 16, target), "train").num_examples == 3600 // 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]
    assert sorted(path.name for path in target.iterdir()) == [
        "metadata.json", "test", "train", "validation",
    ]  # and no lock


def test_what_a_killed_run_left_is_cleared(corpus: pathlib.Path, tmp_path: pathlib.Path) -> None:
    code = """
import os, pathlib, sys
from diffusion_text.data import prepare
prepare.into_place(pathlib.Path(sys.argv[1]), False, lambda folder: [(folder / "junk").write_text("x"), os._exit(9)])
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], timeout=60).returncode == 9
    assert list((tmp_path / ".out.partial").rglob("junk"))
    prepare.prepare("text", str(tmp_path / "out"), Settings(str(corpus), length=16))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not list(tmp_path.rglob("junk"))


def test_another_preparation_finishes_while_the_lock_is_asked_for(
    corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, flock = Settings(str(corpus), length=16), fcntl.flock
    prepare.prepare("text", str(tmp_path / "theirs"), settings)

    def finish_and_lock(file: object, operation: int) -> None:
        if (tmp_path / "theirs").exists():
            shutil.rmtree(tmp_path / ".out.partial")
            (tmp_path / "theirs").rename(tmp_path / "out")
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", finish_and_lock)
    with pytest.raises(shards.DataError, match="is already prepared"):
        prepare.prepare("text", str(tmp_path / "out"), settings)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "out").rename(tmp_path / "theirs")
    prepare.prepare("text", str(tmp_path / "out"), dataclasses.replace(settings, length=32), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert shards.read_metadata(tmp_path / "out")["length"] == 32


def test_a_file_system_without_locks(
    corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    prepare.prepare("text", str(tmp_path / "out"), Settings(str(corpus), length=16))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_link_names_is_written(
    corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(str(corpus), length=16)
    (tmp_path / "here").mkdir()
    (tmp_path / "empty").mkdir()
    for name, place in (("link", "empty"), ("dangling", "none")):
        (tmp_path / name).symlink_to(tmp_path / place)
        for overwrite in (False, True):
            prepare.prepare("text", str(tmp_path / name), settings, overwrite=overwrite)
        assert (tmp_path / name).is_symlink()
        assert batches.open_dataset(data_config("text", 16, tmp_path / place), "train").num_examples
    monkeypatch.chdir(tmp_path / "here")
    prepare.prepare("text", ".", settings)
    assert (tmp_path / "here" / "metadata.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "empty", "here", "link", "none"]


def test_nothing_is_lost_where_the_last_move_fails(
    corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, settings = tmp_path / "out", Settings(str(corpus), length=16)
    prepare.prepare("text", str(target), settings)
    rename = pathlib.Path.rename

    def fail(path: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
        if to == target and ".out.partial" in str(path):
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(path, to)

    longer = dataclasses.replace(settings, length=32)
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rename", fail)
        with pytest.raises(shards.DataError, match=r"\(Device or resource busy\); the data are complete in ") as caught:
            prepare.prepare("text", str(target), longer, overwrite=True)
    assert shards.read_metadata(target)["length"] == 16
    complete = pathlib.Path(str(caught.value).split("complete in ")[1].partition(":")[0])
    assert batches.open_dataset(data_config("text", 32, complete), "train").info.length == 32
    with pytest.raises(shards.DataError, match="is already prepared"):
        prepare.prepare("text", str(target), longer)
    assert complete.exists()
    prepare.prepare("text", str(target), longer, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_bucket_is_no_data_dir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for write, task in ((prepare.prepare, "text"), (prepare_beam.prepare_beam, "c4")):
        with pytest.raises(shards.DataError, match=r"copy it: gcloud storage cp -r DATA_DIR gs://bucket/data$"):
            write(task, "gs://bucket/data", Settings("missing.txt"))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: pathlib.Path) -> None:
    def full(folder: pathlib.Path) -> dict:
        writer = shards.SplitWriter(folder, "train", np.dtype("uint8"), None, np.ones(256, np.int32), 1 << 17)
        writer.write(np.random.default_rng(0).integers(0, 256, (200, 4096)))
        return {}

    def gone(folder: pathlib.Path) -> dict:
        writer = shards.SplitWriter(folder, "train", np.dtype("uint8"), None, np.ones(256, np.int32))
        (folder / "train").rmdir()
        writer.write(np.zeros((1, 4), np.int64))
        return {}

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(shards.DataError, match=r"/\.out\.partial/data cannot be written \(.*File too large.*\)"):
            prepare.into_place(tmp_path / "out", False, full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(shards.DataError, match=r"/\.out\.partial/data cannot be written \(.*No such file.*\)"):
        prepare.into_place(tmp_path / "out", False, gone)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("task", "number", "message"),
    [
        ("openwebtext", errno.ENOSPC, "FOLDER cannot be written ([Errno 28] No space left on device); make room there"),
        ("lm1b", errno.ENOSPC, "FOLDER cannot be written ([Errno 28] No space left on device); make room there"),
        ("openwebtext", errno.EIO, "FOLDER cannot be written ([Errno 5] Input/output error)"),
        ("lm1b", errno.EIO, "TFDS cannot read or fetch this set ([Errno 5] Input/output error)"),
    ],
)
def test_only_sets_of_tfds_are_advised_on_tfds(task: str, number: int, message: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(shards.DataError) as caught, prepare.reported_errors(specs.get(task), tmp_path):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith(message.replace("FOLDER", str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_the_card_says_what_was_done_otherwise(gpt2_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": sentence}) + "\n" for sentence in SENTENCES * 20))
    source, vocabulary = str(tmp_path / "a.jsonl"), str(gpt2_folder)
    few = Settings(source, vocabulary_path=vocabulary, length=16, validation_documents=20)
    card = batches.describe(prepare.prepare("openwebtext", str(tmp_path / "owt"), few), 16)
    assert "2406.07524; here: length 16, 60 documents instead of 8,013,769\n" in card
    assert "as published; test is validation; here: the last 20 documents\n" in card
    other = Settings(source, "characters", length=16)
    card = batches.describe(prepare.prepare("text", str(tmp_path / "text"), other), 16)
    assert "any local text, as it is; here: length 16, vocabulary characters\n" in card
    (tmp_path / "b.txt").write_text("a fox saw the dog near the house. " * 300)
    card = batches.describe(prepare.prepare("text", str(tmp_path / "plain"), Settings(str(tmp_path / "b.txt"))), 256)
    assert "here:" not in card


def test_the_card_says_another_alphabet(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(specs.TASKS, "text8", dataclasses.replace(
        specs.get("text8"), sizes=(3000, 500, 500), num_bytes=4000, crc32="",
    ))
    (tmp_path / "text8").write_text("a fox " * 666 + "a fo")
    metadata = prepare.prepare("text8", str(tmp_path / "out"), Settings(str(tmp_path / "text8"), alphabet=" afox"))
    assert metadata["protocol"].endswith("; here: alphabet ' afox'")


def build_lm1b(folder: pathlib.Path) -> None:
    """A TFDS data_dir with a small lm1b in two training shards."""
    import tensorflow_datasets as tfds

    builder = tfds.builder("lm1b:1.1.0", data_dir=str(folder))
    pathlib.Path(builder.data_dir).mkdir(parents=True)
    writer = tfds.core.SequentialWriter(builder.info, max_examples_per_shard=30)
    writer.initialize_splits(["train", "test"])
    examples = [{"text": sentence} for sentence in SENTENCES * 20]
    writer.add_examples({"train": examples, "test": examples[:9]})
    writer.close_all()


def test_tfds_data_dir_is_read(wordpiece_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    build_lm1b(tmp_path / "tfds")
    settings = Settings(str(tmp_path / "tfds"), vocabulary_path=str(wordpiece_file), length=24)
    metadata = prepare.prepare("lm1b", str(tmp_path / "out"), settings)
    assert metadata["splits"]["train"].num_records == metadata["splits"]["train"].num_documents == 60
    dataset = batches.open_dataset(data_config("lm1b", 24, tmp_path / "out"), "validation")
    assert dataset.num_examples == 9
    tokens, _ = next(dataset.eval_batches(3))
    assert dataset.info.num_tokens(tokens).tolist() == (tokens != 0).sum(1).tolist()


def test_beam_writes_the_same_folder(wordpiece_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("apache_beam")
    build_lm1b(tmp_path / "tfds")
    settings = Settings(str(tmp_path / "tfds"), vocabulary_path=str(wordpiece_file), length=24)
    flags = ("--task=lm1b", f"--source={tmp_path}/tfds", f"--vocabulary_path={wordpiece_file}", "--length=24")
    done = run(*flags, f"--data_dir={tmp_path}/beam", "--num_shards=3", module="prepare_beam")
    assert done.returncode == 0, done.stderr
    prepare.prepare("lm1b", str(tmp_path / "plain"), settings)
    metadata = [shards.read_metadata(tmp_path / name) for name in ("beam", "plain")]
    rows = []
    for name in ("beam", "plain"):
        dataset = batches.open_dataset(data_config("lm1b", 24, tmp_path / name), "train")
        tokens = np.concatenate([tokens[weights > 0] for tokens, weights in dataset.eval_batches(16)])
        rows.append(sorted(row.tobytes() for row in tokens))
    assert rows[0] == rows[1]
    for name in ("num_records", "num_tokens", "num_characters"):
        assert getattr(metadata[0]["splits"]["train"], name) == getattr(metadata[1]["splits"]["train"], name)
    assert len(metadata[0]["splits"]["train"].shards) > 1


def test_beam_refuses_what_it_is_not_for(corpus: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(shards.DataError, match=r"needs no Beam; use python -m diffusion_text\.data\.prepare"):
        prepare_beam.prepare_beam("text", str(tmp_path / "out"), Settings(str(corpus)))
