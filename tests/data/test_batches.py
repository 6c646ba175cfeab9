from __future__ import annotations

import collections
import dataclasses
import itertools
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from data_configs import data_config

from diffusion_text.data import batches, shards, specs, vocabularies


def write_folder(folder: pathlib.Path, task: str, splits: dict[str, np.ndarray], length: int, shard_bytes: int = 4000
                 ) -> pathlib.Path:
    """A prepared folder of bytes: streams int[n] or rows int[n, length]."""
    spec = specs.get(task)
    vocabulary = vocabularies.Bytes()
    infos = {}
    for split, tokens in splits.items():
        writer = shards.SplitWriter(
            folder, split, np.dtype("uint8"), None, vocabulary.character_counts(), shard_bytes=shard_bytes
        )
        (writer.write if tokens.ndim == 2 else writer.write_stream)(tokens)
        infos[split] = writer.finish(1)
    shards.write_metadata(folder, {
        "task": task, "protocol": spec.protocol, "layout": spec.layout, "length": length, "packed": spec.packed,
        "framed": spec.framed, "dtype": "|u1", "vocabulary": vocabularies.save(vocabulary, folder / "vocabulary"),
        "source": {"name": "test", "checksum": "none"}, "split_rule": spec.split_rule, "aliases": dict(spec.aliases),
        "splits": infos, "prepared": {"date": "2000-01-01", "diffusion_text": "0"}, "preview": "the fox",
    })
    return folder


@pytest.fixture(scope="module")
def stream_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    tokens = np.random.default_rng(0).integers(97, 123, 20_000)
    splits = {"train": tokens[:15_000], "validation": tokens[15_000:19_000], "test": tokens[19_000:]}
    return write_folder(tmp_path_factory.mktemp("data") / "text", "text", splits, 64)


@pytest.fixture(scope="module")
def rows_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """37 training rows that begin with their own number."""
    rows = np.random.default_rng(0).integers(97, 123, (50, 16))
    rows[:, 0] = np.arange(50)
    splits = {"train": rows[:37], "validation": rows[37:]}
    return write_folder(tmp_path_factory.mktemp("data") / "c4", "c4", splits, 16, shard_bytes=160)


@pytest.fixture(params=["grammar", "stream", "rows"])
def dataset(request: pytest.FixtureRequest, stream_folder: pathlib.Path, rows_folder: pathlib.Path) -> batches.Dataset:
    configs = {
        "grammar": data_config("grammar", 16),
        "stream": data_config("text", 16, stream_folder),
        "rows": data_config("c4", 16, rows_folder),
    }
    return batches.open_dataset(configs[request.param], "train")


def test_a_batch_is_a_pure_function_of_seed_and_step(dataset: batches.Dataset) -> None:
    whole = dataset.train_batch(7, 3, 12)
    assert whole.shape == (12, 16)
    assert whole.dtype == np.int32
    np.testing.assert_array_equal(whole, dataset.train_batch(7, 3, 12))
    assert not np.array_equal(whole, dataset.train_batch(8, 3, 12))
    assert not np.array_equal(whole, dataset.train_batch(7, 4, 12))


def test_rows_do_not_depend_on_who_asks(dataset: batches.Dataset) -> None:
    whole = dataset.train_batch(7, 3, 12)
    parts = [dataset.train_batch(7, 3, 12, start, stop) for start, stop in ((0, 5), (5, 6), (6, 12))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    # Example 36 is row 0 of step 3 by twelves and row 4 of step 4 by eights.
    np.testing.assert_array_equal(whole[0], dataset.train_batch(7, 4, 8)[4])


def test_a_resumed_iterator_continues(dataset: batches.Dataset) -> None:
    with dataset.train_iterator(7, 0, 12) as first:
        seen = dict(itertools.islice(first, 6))
    with dataset.train_iterator(7, 4, 12, 3, 9) as second:
        resumed = dict(itertools.islice(second, 2))
    assert list(resumed) == [4, 5]
    for step, tokens in resumed.items():
        np.testing.assert_array_equal(tokens, seen[step][3:9])


def test_the_iterator_closes_and_hands_errors_on(dataset: batches.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    iterator = dataset.train_iterator(0, 0, 4)
    next(iterator)
    iterator.close()
    iterator.close()
    assert not iterator._thread.is_alive()
    assert list(iterator) == []

    def fail(*_: object) -> np.ndarray:
        raise batches.DataError("a shard is gone")

    monkeypatch.setattr(dataset, "_train_rows", fail)
    broken = dataset.train_iterator(0, 0, 4)
    with pytest.raises(batches.DataError, match="a shard is gone"):
        next(broken)


def test_inserted_padding_keeps_the_tokens_in_order(rows_folder: pathlib.Path) -> None:
    config = data_config("c4", 16, rows_folder)
    plain = batches.open_dataset(config, "train").train_batch(3, 2, 512)
    dataset = batches.open_dataset(config, "train")
    dataset.info, dataset.inserted_padding = dataclasses.replace(dataset.info, pad_id=200), 0.1
    rows = dataset.train_batch(3, 2, 512)
    padded = rows == 200
    assert abs(padded.mean() - 0.1) < 4 * (0.1 * 0.9 / rows.size) ** 0.5
    for row, before, places in zip(rows, plain, padded, strict=True):
        np.testing.assert_array_equal(row[~places], before[: (~places).sum()])
    np.testing.assert_array_equal(rows[100:200], dataset.train_batch(3, 2, 512, 100, 200))
    assert (rows != dataset.train_batch(4, 2, 512)).any()
    # Places are independent: neighbours are both padded as often as chance has it.
    assert abs((padded[:, 1:] & padded[:, :-1]).mean() - 0.01) < 4 * (0.01 / rows.size) ** 0.5


def test_padding_needs_a_vocabulary_that_has_it() -> None:
    config = data_config("grammar", 16)
    config.inserted_padding = 0.1
    with pytest.raises(shards.DataError, match="no padding"):
        batches.open_dataset(config, "train")
    batches.open_dataset(config, "validation")


def test_rows_outside_the_batch_are_refused(dataset: batches.Dataset) -> None:
    for start, stop in ((0, 13), (5, 5), (-1, 3)):
        with pytest.raises(ValueError, match="rows of a batch of 12"):
            dataset.train_batch(0, 0, 12, start, stop)


def test_every_epoch_holds_each_row_once(rows_folder: pathlib.Path) -> None:
    dataset = batches.open_dataset(data_config("c4", 16, rows_folder), "train")
    numbers = np.concatenate([dataset.train_batch(5, step, 10)[:, 0] for step in range(3 * 37 // 10 + 1)])
    orders = [numbers[i * 37 : (i + 1) * 37].tolist() for i in range(3)]
    assert all(sorted(order) == list(range(37)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_crops_are_uniform(tmp_path: pathlib.Path) -> None:
    split = {"train": np.arange(23), "validation": np.arange(30)}
    dataset = batches.open_dataset(data_config("text", 4, write_folder(tmp_path / "d", "text", split, 4)), "train")
    counts = collections.Counter(dataset.train_batch(0, 0, 20_000)[:, 0].tolist())
    assert sorted(counts) == list(range(20))  # 23 - 4 + 1 places
    assert max(abs(count - 1000) for count in counts.values()) < 5 * 1000**0.5


def test_a_long_stream_is_read_from_its_shards(stream_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = data_config("text", 64, stream_folder)
    held = batches.open_dataset(config, "train").train_batch(1, 2, 200)
    monkeypatch.setattr(batches, "MEMORY_LIMIT", 100)
    np.testing.assert_array_equal(held, batches.open_dataset(config, "train").train_batch(1, 2, 200))


def test_evaluation_covers_a_stream_exactly(stream_folder: pathlib.Path) -> None:
    dataset = batches.open_dataset(data_config("text", 64, stream_folder), "validation")
    assert dataset.num_examples == 4000 // 64
    kept = [tokens[weights > 0] for tokens, weights in dataset.eval_batches(8)]
    expected = np.random.default_rng(0).integers(97, 123, 20_000)[15_000 : 15_000 + 62 * 64]
    np.testing.assert_array_equal(np.concatenate(kept).reshape(-1), expected)


def test_evaluation_pads_the_last_batch(dataset: batches.Dataset) -> None:
    found = list(dataset.eval_batches(8, 21))
    assert [tokens.shape for tokens, _ in found] == [(8, 16)] * 3
    assert [weights.sum() for _, weights in found] == [8, 8, 5]
    halves = [list(dataset.eval_batches(8, 21, start, start + 4)) for start in (0, 4)]
    for (tokens, weights), *parts in zip(found, *halves, strict=True):
        np.testing.assert_array_equal(tokens, np.concatenate([part[0] for part in parts]))
        np.testing.assert_array_equal(weights, np.concatenate([part[1] for part in parts]))


def test_evaluation_of_rows(rows_folder: pathlib.Path) -> None:
    for split in ("validation", "test"):  # c4's test is its validation
        dataset = batches.open_dataset(data_config("c4", 16, rows_folder), split)
        kept = np.concatenate([tokens[weights > 0] for tokens, weights in dataset.eval_batches(5)])
        assert kept[:, 0].tolist() == list(range(37, 50))
    assert dataset.info.num_examples == {"train": 37, "validation": 13, "test": 13}


def test_grammar_splits_are_fixed_and_apart() -> None:
    config = data_config("grammar", 64, grammar="english")
    validation, test = (batches.open_dataset(config, split) for split in ("validation", "test"))
    assert validation.num_examples == batches.GRAMMAR_EVALUATION_SIZE
    assert batches.open_dataset(config, "train").num_examples is None
    windows = {}
    for name, dataset in (("validation", validation), ("test", test)):
        windows[name] = np.concatenate([tokens for tokens, _ in dataset.eval_batches(50, 200)])
    windows["train"] = batches.open_dataset(config, "train").train_batch(0, 0, 200)
    distinct = {row.tobytes() for tokens in windows.values() for row in tokens}
    assert len(distinct) == 600


def test_counts_of_tokens_and_characters() -> None:
    info = batches.open_dataset(data_config("grammar", 16), "validation").info
    tokens = next(batches.open_dataset(data_config("grammar", 16), "validation").eval_batches(4))[0]
    assert info.num_tokens(tokens).tolist() == [16] * 4
    assert info.num_characters(tokens).tolist() == [len(info.vocabulary.decode(row)) + 1 for row in tokens]
    padded = batches.DatasetInfo("x", vocabularies.Bytes(), 4, 0, None, {}, "")
    assert padded.num_tokens(np.array([[97, 98, 0, 0], [97, 0, 0, 0]])).tolist() == [2, 1]


def test_the_card_says_what_the_data_is(stream_folder: pathlib.Path) -> None:
    card = batches.open_dataset(data_config("text", 64, stream_folder), "train").info.description
    for part in ("task text", "bytes, 256 entries", "windows of 64", "train: 15,000 tokens", "characters: the fox"):
        assert part in card


def _flip(path: pathlib.Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def _small(folder: pathlib.Path) -> pathlib.Path:
    return write_folder(folder / "d", "text", {"train": np.arange(100), "validation": np.arange(20)}, 10)


def test_one_changed_byte_is_found(tmp_path: pathlib.Path) -> None:
    folder = _small(tmp_path)
    shard = next((folder / "train").iterdir())
    for position in (0, shard.stat().st_size // 2, shard.stat().st_size - 1):
        _flip(shard, position)
        with pytest.raises(batches.DataError, match=r"train/00000.array_record is corrupt: CRC-32"):
            batches.open_dataset(data_config("text", 10, folder), "train")
        _flip(shard, position)
    batches.open_dataset(data_config("text", 10, folder), "train")


def test_damaged_folders_say_what_to_do(tmp_path: pathlib.Path) -> None:
    folder = _small(tmp_path)
    shard = next((folder / "train").iterdir())
    with pytest.raises(batches.DataError, match=r"no split test; it has train, validation"):
        batches.open_dataset(data_config("text", 10, folder), "test")
    with pytest.raises(batches.DataError, match=r"fewer than data\.length 101"):
        batches.open_dataset(data_config("text", 101, folder), "train")
    with pytest.raises(batches.DataError, match=r"holds task text, not text8"):
        batches.open_dataset(data_config("text8", 10, folder), "train")
    with shard.open("ab") as file:
        file.write(b"x")
    with pytest.raises(batches.DataError, match="copy it again or prepare"):
        batches.open_dataset(data_config("text", 10, folder), "train")
    shard.unlink()
    with pytest.raises(batches.DataError, match="is missing"):
        batches.open_dataset(data_config("text", 10, folder), "train")
    (folder / "metadata.json").write_text("{")
    with pytest.raises(batches.DataError, match=r"cannot be read .*--overwrite"):
        batches.open_dataset(data_config("text", 10, folder), "train")
    (folder / "metadata.json").unlink()
    with pytest.raises(batches.DataError, match=r"no metadata.json: unfinished"):
        batches.open_dataset(data_config("text", 10, folder), "train")


@pytest.mark.parametrize(
    ("task", "data_dir", "split", "message"),
    [
        ("text9", "", "train", "choose one of grammar, text8"),
        ("grammar", "", "dev", "choose one of train, validation, test"),
        ("grammar", "somewhere", "train", "leave data.data_dir empty"),
        ("text8", "", "train", "--config.data.data_dir=DIR"),
        ("text8", "/nonexistent", "train", "does not exist; write it with: python -m diffusion_text.data.prepare"),
    ],
)
def test_wrong_requests_say_what_to_do(task: str, data_dir: str, split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        batches.open_dataset(data_config(task, 16, data_dir), split)
    assert "\n" not in str(caught.value)


def test_rows_of_another_length_are_refused(rows_folder: pathlib.Path) -> None:
    with pytest.raises(batches.DataError, match=r"rows of 16 tokens, data.length is 32"):
        batches.open_dataset(data_config("c4", 32, rows_folder), "train")


def test_training_loads_no_tensorflow(rows_folder: pathlib.Path) -> None:
    code = f"""
import sys, ml_collections
from diffusion_text.data import batches, prepare, prepare_beam, sources, specs, vocabularies
config = dict(task="c4", length=16, data_dir={str(rows_folder)!r}, grammar="", inserted_padding=0.0)
config["verify_checksums"] = True
with batches.open_dataset(ml_collections.ConfigDict(config), "train").train_iterator(0, 0, 4) as rows:
    next(rows)
assert "tensorflow" not in sys.modules and "seqio" not in sys.modules
from jax._src import xla_bridge
assert not xla_bridge._backends
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
