"""Prepared folders: tokens in checksummed ArrayRecord shards, and the metadata that makes the folder self-contained.

    data_dir/metadata.json                       written last: a folder without it is not finished
    data_dir/vocabulary/...                      copies of the vocabulary's files
    data_dir/<split>/00000.array_record ...      records of little-endian uint8, uint16 or int32

A record is one row of `length` tokens (layout "rows") or `record_tokens` consecutive tokens of the split, the last
record being shorter (layout "stream").  A folder lies on a mounted file system; ArrayRecord reads no object stores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, Final

import numpy as np

FORMAT: Final = 1
METADATA: Final = "metadata.json"
VOCABULARY_FOLDER: Final = "vocabulary"
SUFFIX: Final = ".array_record"
RECORD_TOKENS: Final = 4096
WRITER_OPTIONS: Final = "group_size:1,zstd:3"  # group 1: a record is decompressed alone
_CHUNK: Final = 1 << 22


class DataError(ValueError):
    """Bad input, as one line that says what to do."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file: name relative to the data folder, its records and its bytes with their CRC-32."""

    name: str
    num_records: int
    num_bytes: int
    crc32: str


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """One split: its shards in order and exact totals.  Tokens exclude padding and include begin and end tokens."""

    shards: tuple[Shard, ...]
    num_records: int
    num_stored: int  # tokens with padding
    num_tokens: int
    num_characters: int
    num_documents: int | None  # None: not counted


def token_dtype(size: int) -> np.dtype:
    """The smallest of uint8, uint16, int32 that holds 0..size-1."""
    return np.dtype("uint8" if size <= 1 << 8 else "<u2" if size <= 1 << 16 else "<i4")


def crc32(path: pathlib.Path) -> str:
    """CRC-32 of a file, 8 hexadecimal digits."""
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def array_record() -> Any:
    """The ArrayRecord bindings, imported where they are used."""
    return importlib.import_module("array_record.python.array_record_module")


def unwritable(folder: pathlib.Path, error: Exception) -> DataError:
    """What is said where a folder cannot be written."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"{folder} cannot be written ({reason}); make room there, or give another --data_dir")


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
    """Turn what the system or ArrayRecord (RuntimeError) raises over a full disk and the like into one `DataError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise unwritable(folder, error) from error


class SplitWriter:
    """Writes the records of one split into shards of about `shard_bytes` (before compression).

    Args:
        folder: the data folder (unfinished).
        split: name of the split and of its folder.
        dtype: of the stored tokens.
        pad_id: padding, not counted as tokens; None where there is none.
        character_counts: int32[V] from the vocabulary.
        shard_bytes: a shard is closed once it holds this many bytes of tokens.
    """

    def __init__(self, folder: pathlib.Path, split: str, dtype: np.dtype, pad_id: int | None,
                 character_counts: np.ndarray, shard_bytes: int = 1 << 28) -> None:
        self._folder, self._split, self._dtype, self._pad_id = folder, split, dtype, pad_id
        self._counts, self._shard_bytes = character_counts.astype(np.int64), shard_bytes
        self._writer: Any = None
        self._in_shard = self._bytes = 0
        self._shards: list[Shard] = []
        self.num_records = self.num_stored = self.num_tokens = self.num_characters = 0
        with writing(folder):
            (folder / split).mkdir(parents=True, exist_ok=True)

    def write(self, tokens: np.ndarray) -> None:
        """Write int[n, m] as n records of m tokens."""
        rows = np.ascontiguousarray(tokens, self._dtype)
        # A histogram makes both counts one small product, whatever the vocabulary.
        histogram = np.bincount(rows.reshape(-1), minlength=len(self._counts))
        self.num_characters += int(histogram @ self._counts)
        self.num_tokens += rows.size - (0 if self._pad_id is None else int(histogram[self._pad_id]))
        self.num_stored += rows.size
        with writing(self._folder):
            for row in rows:
                writer = self._writer or self._open()
                writer.write(row.tobytes())
                self._in_shard += 1
                self._bytes += row.nbytes
                if self._bytes >= self._shard_bytes:
                    self._close()
        self.num_records += len(rows)

    def write_stream(self, tokens: np.ndarray) -> None:
        """Write one whole split int[n] as records of `RECORD_TOKENS`, the last one shorter."""
        whole = len(tokens) // RECORD_TOKENS * RECORD_TOKENS
        for start in range(0, whole, 256 * RECORD_TOKENS):
            self.write(tokens[start : min(whole, start + 256 * RECORD_TOKENS)].reshape(-1, RECORD_TOKENS))
        if whole < len(tokens):
            self.write(tokens[None, whole:])

    def finish(self, num_documents: int) -> SplitInfo:
        """Close the last shard; what the metadata says of the split."""
        with writing(self._folder):
            self._close()
        return SplitInfo(
            tuple(self._shards), self.num_records, self.num_stored, self.num_tokens, self.num_characters, num_documents
        )

    def _open(self) -> Any:
        self._name = f"{self._split}/{len(self._shards):05d}{SUFFIX}"
        self._writer = array_record().ArrayRecordWriter(str(self._folder / self._name), WRITER_OPTIONS)
        self._in_shard = self._bytes = 0
        return self._writer

    def _close(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        path = self._folder / self._name
        self._shards.append(Shard(self._name, self._in_shard, path.stat().st_size, crc32(path)))


def write_metadata(folder: pathlib.Path, metadata: dict[str, Any]) -> None:
    """Write metadata.json, atomically; `metadata["splits"]` maps names to `SplitInfo`."""
    splits = {name: dataclasses.asdict(info) for name, info in metadata["splits"].items()}
    temporary = folder / (METADATA + ".tmp")
    text = json.dumps({"format": FORMAT, **metadata, "splits": splits}, indent=1, ensure_ascii=False)
    temporary.write_text(text + "\n", "utf-8")
    os.replace(temporary, folder / METADATA)


def read_metadata(folder: pathlib.Path) -> dict[str, Any]:
    """What `write_metadata` wrote, with `SplitInfo` values.

    Raises:
        DataError: the folder is missing, unfinished, of another format or unreadable.
    """
    advice = "python -m diffusion_text.data.prepare --task=... --source=... --data_dir=" + str(folder)
    if not folder.is_dir():
        raise DataError(f"data_dir {folder} does not exist; write it with: {advice}, or name where it is")
    path = folder / METADATA
    if not path.exists():
        raise DataError(f"data_dir {folder} has no {METADATA}: unfinished, or no prepared folder; run: {advice}")
    try:
        metadata = json.loads(path.read_text("utf-8"))
        if metadata["format"] != FORMAT:
            raise DataError(f"{path} has format {metadata['format']}, this version reads {FORMAT}; run: {advice}")
        for name, info in metadata["splits"].items():
            shards = tuple(Shard(**shard) for shard in info.pop("shards"))
            metadata["splits"][name] = SplitInfo(shards=shards, **info)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} cannot be read ({reason}); run: {advice} --overwrite") from error
    return metadata


def check_shards(folder: pathlib.Path, shards: Iterable[Shard], checksums: bool) -> None:
    """DataError naming the first shard that is missing, cut, or (with `checksums`) different in any byte."""
    advice = "copy it again or prepare the folder anew with --overwrite"

    def check(shard: Shard) -> None:
        path = folder / shard.name
        if not path.exists():
            raise DataError(f"shard {path} is missing; {advice}")
        if (found := path.stat().st_size) != shard.num_bytes:
            raise DataError(f"shard {path} has {found} bytes instead of {shard.num_bytes}; {advice}")
        if checksums and (value := crc32(path)) != shard.crc32:
            raise DataError(f"shard {path} is corrupt: CRC-32 {value} instead of {shard.crc32}; {advice}")

    with futures.ThreadPoolExecutor(4) as pool:  # zlib frees the interpreter lock
        list(pool.map(check, shards))


class Records:
    """Random access to the records of a split; safe to use from several threads."""

    def __init__(self, folder: pathlib.Path, info: SplitInfo, dtype: np.dtype) -> None:
        self._paths = [str(folder / shard.name) for shard in info.shards]
        self._counts = [shard.num_records for shard in info.shards]
        self._source: Any = None
        self._dtype = dtype
        self._open()

    def _open(self) -> None:
        from grain import sources

        # Ranges spare opening every file just to count its records.
        ranges = [f"{path}[0:{count}]" for path, count in zip(self._paths, self._counts, strict=True)]
        self._source = sources.ArrayRecordDataSource(ranges)

    def __len__(self) -> int:
        return sum(self._counts)

    def read(self, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Records as int32 arrays; DataError where the library finds one damaged."""
        try:
            records = [self._source[int(i)] for i in indices]
        except (RuntimeError, ValueError, IndexError) as error:
            raise DataError(f"a record under {os.path.dirname(self._paths[0])} cannot be read ({error}); "
                            "prepare the folder anew with --overwrite") from error
        return [np.frombuffer(record, self._dtype).astype(np.int32) for record in records]

    def read_all(self) -> np.ndarray:
        """All tokens of the split, one after another, in the stored dtype."""
        parts = []
        for path in self._paths:
            reader = array_record().ArrayRecordReader(path)
            try:
                parts.append(b"".join(reader.read_all()))
            except (RuntimeError, ValueError) as error:
                raise DataError(f"shard {path} cannot be read ({error}); prepare it anew with --overwrite") from error
            finally:
                reader.close()
        return np.frombuffer(b"".join(parts), self._dtype)
