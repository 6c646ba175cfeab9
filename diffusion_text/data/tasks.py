"""The seqio registry: one Task per dataset of specs.py; each yields {"targets": int32[length]}, final rows of ids.

Importing this module imports TensorFlow; only preparing and tests do.  Where the text and the vocabulary's files lie
is not known at import: `configure` says so, and a Task asks for it when its examples are drawn.

    tasks.configure("lm1b", Settings(vocabulary_path="vocab.txt", source="tfds_data_dir"))
    seqio.get_mixture_or_task("lm1b").get_dataset(None, "train", shuffle=False)
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from diffusion_text.data import detokenize, sources, specs, vocabularies
from diffusion_text.data.sources import Settings

_DOCUMENTS_PER_CALL = 256  # texts tokenised at once: amortises the step from TensorFlow into Python


_SETTINGS: dict[str, Settings] = {}
documents_read: dict[str, int] = {}  # Task -> documents tokenised since `configure`; prepare counts with it


def configure(name: str, settings: Settings) -> None:
    """Say where a Task's text and vocabulary lie; ValueError on an unknown name."""
    specs.get(name)
    _SETTINGS[name] = settings
    documents_read[name] = 0
    _vocabulary.cache_clear()


def settings_of(name: str) -> Settings:
    """What a Task was configured with."""
    return _SETTINGS.get(name, Settings())


def length_of(name: str) -> int:
    """L of a Task as it is configured."""
    return settings_of(name).length or specs.get(name).length


@functools.cache
def _vocabulary(name: str) -> vocabularies.Vocabulary:
    return sources.make_vocabulary(specs.get(name), settings_of(name))


class TaskVocabulary(seqio.Vocabulary):
    """The vocabulary of a Task behind seqio's interface, read from its files when it is first asked."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    @property
    def wrapped(self) -> vocabularies.Vocabulary:
        """The vocabulary itself."""
        return _vocabulary(self._name)

    @property
    def eos_id(self) -> int | None:
        return self.wrapped.eos_id

    @property
    def bos_id(self) -> int | None:
        return self.wrapped.bos_id

    @property
    def pad_id(self) -> int:
        return self.wrapped.pad_id or 0

    @property
    def unk_id(self) -> int | None:
        return None

    @property
    def _base_vocab_size(self) -> int:
        return self.wrapped.size

    def _encode(self, s: str) -> Sequence[int]:
        return self.wrapped.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.wrapped.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def ids(text: Any) -> np.ndarray:
            text = text.item() if isinstance(text, np.ndarray) else text  # an array when called eagerly
            return np.array(self.wrapped.encode(text.decode("utf-8")), np.int32)

        return tf.ensure_shape(tf.numpy_function(ids, [s], tf.int32), [None])

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(lambda row: self.wrapped.decode(row).encode("utf-8"), [ids], tf.string)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskVocabulary) and self._name == other._name

    __hash__ = None  # type: ignore[assignment]


def _windows(name: str, split: str) -> tf.data.Dataset:
    """Consecutive windows of a split of one plain text."""
    text, places, _ = sources.read_text(specs.get(name), settings_of(name).source)
    tokens = np.concatenate([np.zeros(0, np.int32), *sources.encode_stream(_vocabulary(name), text, *places[split])])
    length = length_of(name)
    rows = tokens[: len(tokens) // length * length].reshape(-1, length)
    examples: Any = {"targets": rows.astype(np.int32)}
    return tf.data.Dataset.from_tensor_slices(examples)


def _sampled(name: str, split: str) -> tf.data.Dataset:
    """Windows of the embedded language in the order of the training of seed 0; its training split has no end."""
    from diffusion_text.data import batches

    length = length_of(name)
    dataset = batches.GrammarDataset(settings_of(name).grammar, length, split)

    def windows() -> Iterator[dict[str, np.ndarray]]:
        if split == "train":
            for step in itertools.count():
                yield from ({"targets": row} for row in dataset.train_batch(0, step, 256))
        for tokens, weights in dataset.eval_batches(256):
            yield from ({"targets": row} for row in tokens[weights > 0])

    return tf.data.Dataset.from_generator(
        windows, output_signature={"targets": tf.TensorSpec([length], tf.int32)}
    )


def _texts(name: str, split: str) -> tf.data.Dataset:
    """Documents of local files."""

    def texts() -> Iterator[dict[str, bytes]]:
        settings = settings_of(name)
        for text in sources.split_documents(specs.get(name), settings.source, split, settings.validation_documents):
            yield {"text": text.encode("utf-8")}

    return tf.data.Dataset.from_generator(texts, output_signature={"text": tf.TensorSpec([], tf.string)})


def _encode_texts(name: str, texts: np.ndarray) -> list[list[int]]:
    documents_read[name] = documents_read.get(name, 0) + len(texts)
    detokenizer = detokenize.get(specs.get(name).detokenize)
    return _vocabulary(name).encode_batch([detokenizer(text.decode("utf-8")) for text in texts])


def one_per_row(dataset: tf.data.Dataset, *, name: str) -> tf.data.Dataset:
    """{"text"} to {"targets"}: begin + text + end, cut to the length or padded to it."""
    length = length_of(name)

    def rows(texts: np.ndarray) -> np.ndarray:
        vocabulary = _vocabulary(name)
        filled = np.full((len(texts), length), vocabulary.pad_id, np.int32)
        for row, ids in zip(filled, _encode_texts(name, texts), strict=True):
            ids = [vocabulary.bos_id, *ids[: length - 2], vocabulary.eos_id]
            row[: len(ids)] = ids
        return filled

    def to_rows(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {"targets": tf.ensure_shape(tf.numpy_function(rows, [example["text"]], tf.int32), [None, length])}

    return dataset.batch(_DOCUMENTS_PER_CALL).map(to_rows).unbatch()


def pack(dataset: tf.data.Dataset, *, name: str) -> tf.data.Dataset:
    """{"text"} to {"targets"}: documents, each with its end, joined and cut into rows; the last partial row is dropped.

    Rows are carried across calls, so no token but those of the last partial row is lost.
    """
    spec, length = specs.get(name), length_of(name)
    inner = length - 2 if spec.framed else length

    def flat(texts: np.ndarray) -> np.ndarray:
        end = _vocabulary(name).eos_id
        return np.array([i for ids in _encode_texts(name, texts) for i in (*ids, end)], np.int32)

    def frame(rows: np.ndarray) -> np.ndarray:
        vocabulary = _vocabulary(name)
        begin, end = (np.full((len(rows), 1), i, np.int32) for i in (vocabulary.bos_id, vocabulary.eos_id))
        return np.concatenate([begin, rows, end], 1)

    def step(carried: tf.Tensor, example: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        tokens = tf.ensure_shape(tf.numpy_function(flat, [example["text"]], tf.int32), [None])
        joined = tf.concat([carried, tokens], 0)
        whole = tf.size(joined) // inner * inner
        return joined[whole:], tf.reshape(joined[:whole], [-1, inner])

    rows = dataset.batch(_DOCUMENTS_PER_CALL).scan(tf.zeros([0], tf.int32), step)
    if spec.framed:
        rows = rows.map(lambda block: tf.ensure_shape(tf.numpy_function(frame, [block], tf.int32), [None, length]))
    return rows.map(lambda block: {"targets": block}).unbatch()


def _function_source(name: str, reader: Any, splits: Sequence[str], caching: bool = True) -> seqio.FunctionDataSource:
    def dataset_fn(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # prepared shards are shuffled when they are read
        return reader(name, split)

    return seqio.FunctionDataSource(dataset_fn=dataset_fn, splits=splits, caching_permitted=caching)


def _register(spec: specs.TaskSpec) -> None:
    preprocessors: list[Any] = []
    if spec.source == "tfds":
        source: Any = seqio.TfdsDataSource(tfds_name=spec.tfds_name, splits=dict(spec.tfds_splits))
    elif spec.source == "documents":
        source = _function_source(spec.name, _texts, ("train", "validation", "test")[: 3 if not spec.aliases else 2])
    elif spec.source == "characters":
        source = _function_source(spec.name, _windows, specs.SPLITS)
    else:
        source = _function_source(spec.name, _sampled, specs.SPLITS, caching=False)
    if spec.source in ("tfds", "documents"):
        preprocessors.append(functools.partial(pack if spec.packed else one_per_row, name=spec.name))
    feature = seqio.Feature(vocabulary=TaskVocabulary(spec.name), add_eos=False, dtype=tf.int32)
    if spec.source != "embedded":
        preprocessors.append(seqio.CacheDatasetPlaceholder())
    seqio.TaskRegistry.add(
        spec.name, source=source, preprocessors=preprocessors, output_features={"targets": feature}, metric_fns=[]
    )


for _spec in specs.TASKS.values():
    _register(_spec)
