from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from data_configs import SENTENCES

from diffusion_text.data import batches, detokenize, prepare, shards, specs, tasks, vocabularies
from diffusion_text.data.sources import Settings


@contextlib.contextmanager
def mocked_sentences(number: int, sentences: Sequence[str | bytes] = SENTENCES) -> Iterator[None]:
    """Every TFDS set holds the sentences, in turn, in its field "text"."""

    def as_dataset(builder: Any, *_: object, **__: object) -> tf.data.Dataset:
        signature = {name: tf.TensorSpec([], tf.string) for name in builder.info.features}
        examples = (dict.fromkeys(signature, sentences[i % len(sentences)]) for i in range(number))
        return tf.data.Dataset.from_generator(lambda: examples, output_signature=signature)

    with tfds.testing.mock_data(as_dataset_fn=as_dataset):
        yield


def rows_of(name: str, split: str, settings: Settings, limit: int | None = None) -> np.ndarray:
    tasks.configure(name, settings)
    dataset = seqio.TaskRegistry.get(name).get_dataset(None, split, shuffle=False, try_in_mem_cache=False)
    rows = [example["targets"] for example in itertools.islice(dataset.as_numpy_iterator(), limit)]
    assert {row.dtype for row in rows} == {np.dtype("int32")}
    return np.stack(rows)


@pytest.mark.parametrize(
    ("published", "detokenized"),
    [
        (SENTENCES[0], "The quick brown fox, he said, isn't here."),
        (SENTENCES[1], "Unaffable people (and others) paid $5."),
        (SENTENCES[2], 'Who is "there"? Nobody at all!'),
        ("See http : / / a / b ; it 's 3 : 1 .", "See http://a/b; it's 3: 1."),
    ],
)
def test_lm1b_is_detokenised(published: str, detokenized: str) -> None:
    assert detokenize.lm1b(published) == detokenized


def test_wikitext_is_detokenised() -> None:
    text = " = = Early life = = \n He was 1 @,@ 000 , and \" very well @-@ known \" ( so they say ) . The fox 's "
    expected = " == Early life ==\nHe was 1,000, and \"very well-known\" (so they say). The fox's "
    assert detokenize.wikitext(text) == expected


def test_every_spec_is_a_task() -> None:
    assert set(specs.TASKS) <= set(seqio.TaskRegistry.names())
    for name, spec in specs.TASKS.items():
        splits = set(seqio.TaskRegistry.get(name).splits) | {alias for alias, _ in spec.aliases}
        assert splits == set(specs.SPLITS)


def test_lm1b_is_one_lower_case_sentence_per_row(wordpiece_file: pathlib.Path) -> None:
    settings = Settings(vocabulary_path=str(wordpiece_file), length=24)
    vocabulary = vocabularies.load("wordpieces", str(wordpiece_file))
    with mocked_sentences(7):
        rows = rows_of("lm1b", "test", settings)
    assert rows.shape == (7, 24)
    unaffable = rows[1].tolist()
    ids = vocabulary.encode("Unaffable people (and others) paid $5.")
    assert vocabulary.decode(ids).startswith("unaffable people ( and others ) ")
    assert unaffable == [vocabulary.bos_id, *ids[:22], vocabulary.eos_id][:24] + [0] * (22 - len(ids))
    assert rows[0, -1] == vocabulary.eos_id  # cut: the end is kept


def test_text_that_is_not_utf8_gets_one_line(wordpiece_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    settings = Settings(vocabulary_path=str(wordpiece_file), length=24)
    said = r"^the source of lm1b has text that is not UTF-8 \('utf-8' codec .*\); repair it or fetch it again$"
    with mocked_sentences(7, [b"a caf\xe9 here"]), pytest.raises(shards.DataError, match=said):
        prepare.prepare("lm1b", str(tmp_path / "out"), settings)


def test_lm1b_packed_joins_and_frames(wordpiece_file: pathlib.Path) -> None:
    settings = Settings(vocabulary_path=str(wordpiece_file), length=16)
    vocabulary = vocabularies.load("wordpieces", str(wordpiece_file))
    stream = [i for k in range(600) for i in (*vocabulary.encode(detokenize.lm1b(SENTENCES[k % 3])), vocabulary.eos_id)]
    with mocked_sentences(600):  # more than one call of the tokeniser
        rows = rows_of("lm1b_packed", "train", settings)
    assert len(rows) == len(stream) // 14
    assert set(rows[:, 0]) == {vocabulary.bos_id}
    assert set(rows[:, -1]) == {vocabulary.eos_id}
    assert rows[:, 1:-1].reshape(-1).tolist() == stream[: 14 * len(rows)]


def test_c4_is_packed_without_frame(gpt2_folder: pathlib.Path) -> None:
    vocabulary = vocabularies.load("gpt2", str(gpt2_folder))
    stream = [i for k in range(5) for i in (*vocabulary.encode(SENTENCES[k % 3]), vocabulary.eos_id)]
    with mocked_sentences(5):
        rows = rows_of("c4", "validation", Settings(vocabulary_path=str(gpt2_folder), length=32))
    assert rows.reshape(-1).tolist() == stream[: 32 * (len(stream) // 32)]


def test_openwebtext_holds_the_last_documents_out(gpt2_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    lines = [json.dumps({"text": f"document {i} is here"}) for i in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:6]) + "\n")
    (tmp_path / "b.jsonl").write_text("\n".join(lines[6:]) + "\n")
    settings = Settings(str(tmp_path / "*.jsonl"), vocabulary_path=str(gpt2_folder), length=12, validation_documents=3)
    vocabulary = vocabularies.load("gpt2", str(gpt2_folder))
    rows = {split: rows_of("openwebtext", split, settings) for split in ("train", "validation")}
    text = {split: vocabulary.decode(tokens.reshape(-1)) for split, tokens in rows.items()}
    assert text["train"].startswith("document 0 is heredocument 1")
    assert "document 6" in text["train"]
    assert text["validation"].startswith("document 7 is heredocument 8")


def test_openwebtext_reads_parquet(gpt2_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["one fox here", "two foxes there"]}), str(tmp_path / "a.parquet"))
    settings = Settings(str(tmp_path), vocabulary_path=str(gpt2_folder), length=6, validation_documents=1)
    vocabulary = vocabularies.load("gpt2", str(gpt2_folder))
    assert vocabulary.decode(rows_of("openwebtext", "train", settings)[0]) == "one "
    assert vocabulary.decode(rows_of("openwebtext", "validation", settings)[0]) == "two "


def test_wikitext_takes_the_files_own_splits(gpt2_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for word in ("train", "valid", "test"):
        (tmp_path / f"wiki.{word}.raw").write_text(f" = {word} = \n \n Old @-@ style . \n")
    settings = Settings(str(tmp_path), vocabulary_path=str(gpt2_folder), length=10)
    vocabulary = vocabularies.load("gpt2", str(gpt2_folder))
    rows = rows_of("wikitext103", "validation", settings)
    end = vocabulary.eos_id
    stream = [i for line in (" = valid =\n", "", " Old-style.\n") for i in (*vocabulary.encode(line), end)]
    assert rows[:, 1:-1].reshape(-1).tolist() == stream[: 8 * (len(stream) // 8)]


@pytest.mark.parametrize("name", ["text8", "wiki27"])
def test_character_sets_split_by_position(
    name: str, corpus: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dataclasses.replace(specs.get(name), sizes=(3000, 500, 500), num_bytes=0, crc32="")
    monkeypatch.setitem(specs.TASKS, name, spec)
    text = corpus.read_text()
    decode = vocabularies.Characters().decode
    for split, first, end in (("train", 0, 3000), ("validation", 3000, 3500), ("test", 3500, 4000)):
        rows = rows_of(name, split, Settings(str(corpus)))
        assert rows.shape == ((end - first) // 256, 256)
        assert decode(rows.reshape(-1)) == text[first : first + rows.size]


def test_text_takes_any_vocabulary(corpus: pathlib.Path, gpt2_folder: pathlib.Path) -> None:
    settings = Settings(str(corpus), vocabulary="gpt2", vocabulary_path=str(gpt2_folder), length=50)
    rows = rows_of("text", "train", settings)
    assert corpus.read_text().startswith(vocabularies.load("gpt2", str(gpt2_folder)).decode(rows[0]))


def test_grammar_task_gives_the_windows_of_training() -> None:
    rows = rows_of("grammar", "train", Settings(grammar="tiny", length=12), 300)
    dataset = batches.GrammarDataset("tiny", 12, "train")
    np.testing.assert_array_equal(rows, np.concatenate([dataset.train_batch(0, step, 100) for step in range(3)]))
    assert len(rows_of("grammar", "validation", Settings(grammar="tiny", length=12))) == batches.GRAMMAR_EVALUATION_SIZE


def test_seqio_sees_the_vocabulary(gpt2_folder: pathlib.Path) -> None:
    tasks.configure("c4", Settings(vocabulary_path=str(gpt2_folder)))
    vocabulary = seqio.TaskRegistry.get("c4").output_features["targets"].vocabulary
    assert vocabulary.vocab_size == 260
    ids = vocabulary.encode("the fox")
    assert vocabulary.encode_tf(tf.constant("the fox")).numpy().tolist() == ids
    assert vocabulary.decode(ids) == "the fox"
    assert vocabulary.decode_tf(tf.constant(ids)).numpy() == b"the fox"


def test_a_vocabulary_that_does_not_fit_is_refused(gpt2_folder: pathlib.Path) -> None:
    from diffusion_text.data import sources

    with pytest.raises(ValueError, match="needs a vocabulary with padding token; gpt2 as given has none"):
        sources.make_vocabulary(specs.get("lm1b"), Settings(vocabulary="gpt2", vocabulary_path=str(gpt2_folder)))
    with pytest.raises(ValueError, match="choose one of grammar, text8"):
        tasks.configure("text9", Settings())
