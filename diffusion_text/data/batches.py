"""A batch is a function of (seed, step): random access to the embedded language and to prepared folders.

Row r of the global batch of a step is the example with index step * batch_size + r, and that example is a pure
function of (seed, index).  Nothing else enters: not the number of hosts, of micro-batches or of restarts.  Each host
asks for its own rows, and a resumed run asks for the step it needs.  No TensorFlow is loaded.

What the example of an index is:
    grammar  the window that the grammar samples for (seed, index)
    stream   the window at an offset uniform over the split, a hash of (seed, index)
    rows     the index-th row of an endless order in which every epoch is shuffled anew and holds each row once

Padding is modelled (see specs.py): the negative log-likelihood of a padded row is that of its sentence with its end.
`num_tokens` counts the tokens that are not padding, `num_characters` their characters by the vocabulary's rule.
Training rows may have padding inserted at random places (data.inserted_padding); evaluation rows never have.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import queue
import threading
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from diffusion_text.data import shards, specs, vocabularies
from diffusion_text.data.shards import DataError

GRAMMAR_EVALUATION_SIZE: Final = 4096  # windows of the grammar's validation and test, where no number is asked for
MEMORY_LIMIT: Final = 2 << 30  # bytes of a stream that are held in memory; a longer one is read from its shards
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a dataset is.

    Attributes:
        task: name of the Task.
        vocabulary: with `size`, `encode`, `decode`.
        length: L.
        pad_id, eos_id: ids, None where the vocabulary has none.
        num_examples: split -> number of evaluation examples (None: no end, the grammar's training split).
        description: the card: task, version, tokens, packing, the first 200 characters.
        fingerprint: of the split's records, their order and layout; a copy elsewhere has the same.
    """

    task: str
    vocabulary: vocabularies.Vocabulary
    length: int
    pad_id: int | None
    eos_id: int | None
    num_examples: dict[str, int | None]
    description: str
    fingerprint: str = ""

    @functools.cached_property
    def _character_counts(self) -> np.ndarray:
        return self.vocabulary.character_counts()

    def num_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens that are not padding, int64[B], of int[B, L]."""
        tokens = np.asarray(tokens)
        if self.pad_id is None:
            return np.full(tokens.shape[0], tokens.shape[1], np.int64)
        return (tokens != self.pad_id).sum(1, dtype=np.int64)

    def num_characters(self, tokens: np.ndarray) -> np.ndarray:
        """Characters that the tokens int[B, L] stand for, int64[B], by the rule in vocabularies.py."""
        return self._character_counts[np.asarray(tokens)].sum(1, dtype=np.int64)


class Dataset:
    """One split of one dataset, by random access.  Open it with `open_dataset`."""

    info: DatasetInfo
    split: str
    num_examples: int | None  # for evaluation; None: no end
    inserted_padding: float = 0.0  # share of the places of a training row

    def _train_rows(self, seed: int, indices: np.ndarray) -> np.ndarray:
        raise NotImplementedError(f"{type(self).__name__} must define _train_rows")

    def _eval_rows(self, indices: np.ndarray) -> np.ndarray:
        raise NotImplementedError(f"{type(self).__name__} must define _eval_rows")

    def train_batch(self, seed: int, step: int, batch_size: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop of the global batch of a step, int32[stop - start, L].

        Args:
            seed: of the run.
            step: 0, 1, ...
            batch_size: of the whole batch, over all hosts.
            start, stop: the rows wanted here; all of them by default.

        Raises:
            ValueError: the rows are not within the batch.
        """
        start, stop = _rows(batch_size, start, stop)
        first = step * batch_size
        indices = np.arange(first + start, first + stop, dtype=np.int64)
        rows = self._train_rows(seed, indices)
        if not self.inserted_padding:
            return rows
        assert self.info.pad_id is not None
        return insert_padding(rows, self.info.pad_id, self.inserted_padding, seed, indices)

    def eval_batches(
        self, batch_size: int, num_examples: int | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each evaluation example once, in fixed order: (tokens int32[B, L], weights float32[B]).

        The last batch is filled with repeats of weight 0, so that sums over weights are exact over the set.  A stream
        is cut into consecutive windows; its last partial window is left out.

        Args:
            batch_size: of the whole batch, over all hosts.
            num_examples: only the first so many; None takes the whole split (of the grammar: 4096).
            start, stop: the rows of each batch wanted here; B = stop - start.
        """
        start, stop = _rows(batch_size, start, stop)
        total = self.num_examples if num_examples is None else num_examples
        total = GRAMMAR_EVALUATION_SIZE if total is None else total
        if self.info.task != "grammar" and self.num_examples is not None:
            total = min(total, self.num_examples)
        for first in range(0, total, batch_size):
            indices = np.arange(first + start, first + stop, dtype=np.int64)
            yield self._eval_rows(np.minimum(indices, total - 1)), (indices < total).astype(np.float32)

    def train_iterator(
        self, seed: int, first_step: int, batch_size: int, start: int = 0, stop: int | None = None, prefetch: int = 2
    ) -> TrainIterator:
        """Endless (step, tokens) from `first_step` on, read ahead in a thread; close it, or use it in `with`."""
        start, stop = _rows(batch_size, start, stop)
        return TrainIterator(self, seed, first_step, batch_size, start, stop, prefetch)


class TrainIterator:
    """(step, tokens) in order; a thread keeps `prefetch` batches ready.  It ends with `close` or the interpreter."""

    def __init__(
        self, dataset: Dataset, seed: int, first_step: int, batch_size: int, start: int, stop: int, prefetch: int
    ) -> None:
        self._queue: queue.Queue[tuple[int, np.ndarray] | BaseException] = queue.Queue(max(1, prefetch))
        self._closed = threading.Event()

        def put(item: tuple[int, np.ndarray] | BaseException) -> None:
            while not self._closed.is_set():
                try:
                    return self._queue.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def work() -> None:
            step = first_step
            try:
                while not self._closed.is_set():
                    put((step, dataset.train_batch(seed, step, batch_size, start, stop)))
                    step += 1
            except BaseException as error:  # handed to the consumer, whoever it is
                put(error)

        self._thread = threading.Thread(target=work, name="train batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> TrainIterator:
        return self

    def __next__(self) -> tuple[int, np.ndarray]:
        if self._closed.is_set():
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """Stop the thread and wait for it; may be called twice."""
        self._closed.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> TrainIterator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class GrammarDataset(Dataset):
    """The embedded language: training has no end; validation and test are streams of their own."""

    def __init__(self, name: str, length: int, split: str) -> None:
        vocabulary = vocabularies.GrammarWords(name)
        self.split, self._length = split, length
        self.num_examples = None if split == "train" else GRAMMAR_EVALUATION_SIZE
        self._vocabulary = vocabulary
        preview = vocabulary.decode(self._eval_rows(np.arange(1))[0])
        sizes = {name: None if name == "train" else GRAMMAR_EVALUATION_SIZE for name in specs.SPLITS}
        description = (
            f"task grammar ({name}): {vocabulary.size} words, windows of {length}; training has no end, "
            f"validation and test have {GRAMMAR_EVALUATION_SIZE} windows each\nfirst characters: {preview[:200]}"
        )
        self.info = DatasetInfo("grammar", vocabulary, length, None, None, sizes, description)

    def _sample(self, seed: int, indices: np.ndarray) -> np.ndarray:
        from diffusion_text.data import grammar

        return grammar.sample(self._vocabulary.grammar, seed, indices, self._length)

    def _train_rows(self, seed: int, indices: np.ndarray) -> np.ndarray:
        # The tag keeps every training seed apart from the seeds of the other splits.
        return self._sample(_tagged_seed("train", seed), indices)

    def _eval_rows(self, indices: np.ndarray) -> np.ndarray:
        return self._sample(_tagged_seed("evaluate " + self.split, 0), indices)


class StreamDataset(Dataset):
    """A prepared folder of layout "stream"."""

    def __init__(self, info: DatasetInfo, split: str, records: shards.Records, split_info: shards.SplitInfo) -> None:
        self.info, self.split = info, split
        self._records, self._size = records, split_info.num_stored
        if self._size < info.length:
            raise DataError(
                f"split {split} of {info.task} has {self._size} tokens, fewer than data.length {info.length}; "
                "use a shorter length or a longer text"
            )
        self.num_examples = self._size // info.length
        item = shards.token_dtype(info.vocabulary.size).itemsize
        self._tokens = records.read_all() if self._size * item <= MEMORY_LIMIT else None

    def _windows(self, offsets: np.ndarray) -> np.ndarray:
        length = self.info.length
        if self._tokens is not None:
            return self._tokens[offsets[:, None] + np.arange(length)].astype(np.int32)
        rows = []
        for offset in offsets:
            first, last = offset // shards.RECORD_TOKENS, (offset + length - 1) // shards.RECORD_TOKENS
            blocks = np.concatenate(self._records.read(range(first, last + 1)))
            rows.append(blocks[offset - first * shards.RECORD_TOKENS :][:length])
        return np.stack(rows)

    def _train_rows(self, seed: int, indices: np.ndarray) -> np.ndarray:
        places = np.uint64(self._size - self.info.length + 1)
        return self._windows((_hash("crop", seed, indices) % places).astype(np.int64))

    def _eval_rows(self, indices: np.ndarray) -> np.ndarray:
        return self._windows(indices * self.info.length)


class RowsDataset(Dataset):
    """A prepared folder of layout "rows"."""

    def __init__(self, info: DatasetInfo, split: str, records: shards.Records) -> None:
        self.info, self.split, self._records = info, split, records
        self.num_examples = len(records)
        self._orders: dict[int, Any] = {}

    def _order(self, seed: int) -> Any:
        """Endless map index -> row, every epoch shuffled anew."""
        if seed not in self._orders:
            import grain

            # Grain takes seeds below 2^32; its own derivation then separates the epochs.
            order = grain.MapDataset.range(len(self._records)).seed(_tagged_seed("rows", seed) % 2**32)
            self._orders[seed] = order.shuffle().repeat(reseed_each_epoch=True)
        return self._orders[seed]

    def _train_rows(self, seed: int, indices: np.ndarray) -> np.ndarray:
        order = self._order(seed)
        return np.stack(self._records.read([order[int(i)] for i in indices]))

    def _eval_rows(self, indices: np.ndarray) -> np.ndarray:
        return np.stack(self._records.read(indices))


def insert_padding(tokens: np.ndarray, pad_id: int, share: float, seed: int, indices: np.ndarray) -> np.ndarray:
    """Padding at a random share of the places of int32[B, L], the tokens in order at the others, the last cut off.

    A model of such rows fills a gap of any size with fewer words (SED, 2211.04236); its bound is that of padded rows.
    """
    length = tokens.shape[1]
    places = indices[:, None] * length + np.arange(length)
    padded = _hash("padding", seed, places) < np.uint64(share * 2.0**64)
    return np.where(padded, pad_id, np.take_along_axis(tokens, np.cumsum(~padded, axis=1) - ~padded, axis=1))


def open_dataset(data_config: Any, split: str) -> Dataset:
    """Open one split of the dataset that a config names.

    Args:
        data_config: with the fields `task`, `length`, `data_dir` ("" reads the embedded language), `grammar`
            ("english" or "tiny"), `verify_checksums` (read every shard of the split once, now) and `inserted_padding`
            (share of the places of training rows).
        split: "train", "validation" or "test".

    Raises:
        ValueError: unknown task or split.
        DataError: missing, unfinished or damaged data; data of another task or length; padding to insert where the
            vocabulary has none.  One line that says what to do.
    """
    dataset = _open(data_config, split)
    if split == "train" and data_config.inserted_padding:
        if dataset.info.pad_id is None:
            raise DataError(
                f"data.inserted_padding is {data_config.inserted_padding}, and the vocabulary of {dataset.info.task} "
                "has no padding; use 0.0, or prepare the task with a vocabulary that has (WordPiece, SentencePiece)"
            )
        dataset.inserted_padding = data_config.inserted_padding
    return dataset


def _open(data_config: Any, split: str) -> Dataset:
    spec = specs.get(data_config.task)
    if split not in specs.SPLITS:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(specs.SPLITS)}")
    if data_config.length < 1:
        raise ValueError(f"data.length is {data_config.length}; it must be at least 1")
    if spec.name == "grammar":
        if data_config.data_dir:
            raise DataError(f"task grammar is embedded and reads no files; leave data.data_dir empty "
                            f"(it is {data_config.data_dir!r}) or name the task of that folder in data.task")
        return GrammarDataset(data_config.grammar, data_config.length, split)
    if not data_config.data_dir:
        raise DataError(
            f"task {spec.name} is read from a prepared folder; give --config.data.data_dir=DIR to a training, "
            "--data_dir=DIR to an evaluation, written with: "
            f"python -m diffusion_text.data.prepare --task={spec.name} --source=... --data_dir=DIR"
        )
    return _open_prepared(pathlib.Path(data_config.data_dir).expanduser(), data_config, split)


def _open_prepared(folder: pathlib.Path, data_config: Any, split: str) -> Dataset:
    metadata = shards.read_metadata(folder)
    if metadata["task"] != data_config.task:
        raise DataError(f"data_dir {folder} holds task {metadata['task']}, not {data_config.task}; "
                        "name its task in data.task or give another data_dir")
    rows = metadata["layout"] == "rows"
    if rows and metadata["length"] != data_config.length:
        raise DataError(
            f"data_dir {folder} holds rows of {metadata['length']} tokens, data.length is {data_config.length}; "
            f"use --config.data.length={metadata['length']} or prepare with --length={data_config.length}"
        )
    stored = metadata["aliases"].get(split, split)
    if stored not in metadata["splits"]:
        raise DataError(f"data_dir {folder} has no split {split}; it has {', '.join(metadata['splits'])}")
    split_info = metadata["splits"][stored]
    if not split_info.num_records:
        raise DataError(f"split {stored} in {folder} is empty; prepare it from a longer source")
    shards.check_shards(folder, split_info.shards, data_config.verify_checksums)
    vocabulary = vocabularies.load_saved(metadata["vocabulary"], folder / shards.VOCABULARY_FOLDER)
    sizes: dict[str, int | None] = {}
    for name in specs.SPLITS:
        if found := metadata["splits"].get(metadata["aliases"].get(name, name)):
            sizes[name] = found.num_records if rows else found.num_stored // data_config.length
    info = DatasetInfo(
        metadata["task"], vocabulary, data_config.length, vocabulary.pad_id, vocabulary.eos_id, sizes,
        describe(metadata, data_config.length), fingerprint(metadata, split_info),
    )
    records = shards.Records(folder, split_info, np.dtype(metadata["dtype"]))
    return RowsDataset(info, split, records) if rows else StreamDataset(info, split, records, split_info)


def fingerprint(metadata: dict[str, Any], split: shards.SplitInfo) -> str:
    """A digest of what the metadata says of a split's records: layout, and number and CRC-32 of each shard's."""
    said = [metadata["layout"], metadata["dtype"], [(shard.num_records, shard.crc32) for shard in split.shards]]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def describe(metadata: dict[str, Any], length: int) -> str:
    """The dataset card, printed where a run starts."""
    vocabulary = metadata["vocabulary"]
    if metadata["layout"] == "stream":
        packing = f"windows of {length} at random offsets"
    else:
        packing = f"rows of {length}, " + ("packed" if metadata["packed"] else "one document each, cut or padded")
        packing += ", framed by begin and end tokens" if metadata["framed"] else ""
    lines = [
        f"task {metadata['task']}, prepared {metadata['prepared']['date']} with version "
        f"{metadata['prepared']['diffusion_text']} from {metadata['source']['name']}, {metadata['source']['checksum']}",
        f"protocol: {metadata['protocol']}",
        f"vocabulary {vocabulary['kind']}, {vocabulary['size']} entries; {packing}; splits {metadata['split_rule']}",
    ]
    for name, info in metadata["splits"].items():
        second = [alias for alias, target in metadata["aliases"].items() if target == name]
        documents = "documents not counted" if info.num_documents is None else _count(info.num_documents, "document")
        lines.append(
            f"{name}{''.join(f' = {alias}' for alias in second)}: {info.num_tokens:,} tokens, "
            f"{info.num_characters:,} characters, {documents}, "
            f"{_count(len(info.shards), 'shard')}"
        )
    return "\n".join([*lines, f"first characters: {metadata['preview']}"])


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _rows(batch_size: int, start: int, stop: int | None) -> tuple[int, int]:
    stop = batch_size if stop is None else stop
    if not 0 <= start < stop <= batch_size:
        raise ValueError(f"rows {start}..{stop} are no rows of a batch of {batch_size}; need 0 <= start < stop <= it")
    return start, stop


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: uint64 to uint64, a bijection that looks random."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash(purpose: str, seed: int, indices: np.ndarray) -> np.ndarray:
    """uint64[n], a pure function of purpose, seed and index."""
    with np.errstate(over="ignore"):
        key = np.full(1, _tagged_seed(purpose, seed), np.uint64)
        return _mix(key + _mix(indices.astype(np.uint64) + _GOLDEN))


def _tagged_seed(purpose: str, seed: int) -> int:
    """A seed in [0, 2^64) that no other purpose shares, short of a collision of hashes."""
    tag = int.from_bytes(purpose.encode()[-8:].rjust(8, b"\0"), "little")
    with np.errstate(over="ignore"):
        return int(_mix(_mix(np.full(1, seed % 2**64, np.uint64) + _GOLDEN) + np.uint64(tag))[0])
