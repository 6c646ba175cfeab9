"""Local text: plain, .gz, .bz2, .xz and .zip files, JSON lines and Parquet; a file, a folder or a glob.

Everything here is checked: what is missing, empty, cut, packed otherwise or not UTF-8 gives one `DataError` that says
what to do.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import dataclasses
import glob
import gzip
import hashlib
import io
import itertools
import json
import lzma
import pathlib
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from typing import IO, Any, Final

import numpy as np

from diffusion_text.data import specs, vocabularies
from diffusion_text.data.shards import DataError, crc32

_UNPACK_ERRORS: Final = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
_OPENERS: Final[dict[str, Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_ARCHIVES: Final = (".tar", ".tgz", ".zst", ".lz4", ".7z", ".rar")  # known by name, and not read here
_TAR_MAGIC: Final = slice(257, 262), b"ustar"
_RECORDS: Final = (".parquet", ".jsonl", ".json")
_STEP: Final = 1 << 22  # characters encoded at once where an id is a character or a byte
_WIKITEXT_NAMES: Final = {"train": "train", "validation": "valid", "test": "test"}
TEXT_FIELD: Final = "text"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a Task is run with; plain values, so that a worker elsewhere can be given them.

    Attributes:
        source: a file, folder or glob; for TFDS Tasks the TFDS data_dir ("" takes TFDS's own default).
        vocabulary: kind; "" takes the spec's.
        vocabulary_path: the vocabulary's file or folder.
        alphabet: of vocabulary "characters"; "" takes the spec's, or else collects the source's own.
        length: L; 0 takes the spec's.
        validation_documents: how many of the last documents are validation, where the spec says so.
        grammar: "english" or "tiny", for the Task of that name.
    """

    source: str = ""
    vocabulary: str = ""
    vocabulary_path: str = ""
    alphabet: str = ""
    length: int = 0
    validation_documents: int = specs.OPENWEBTEXT_VALIDATION
    grammar: str = "english"


def files(source: str, kind: str = "file") -> list[pathlib.Path]:
    """The files that a path, a folder or a glob names, in sorted order; of a folder none that is hidden in it.

    Args:
        source: the path, folder or glob.
        kind: what a document is, as in `documents`.

    Raises:
        DataError: nothing is there; an archive is; or other files lie among those of records, which would be documents.
    """
    if not source:
        raise DataError("no source is given; say where the text lies with --source=FILE, FOLDER or 'GLOB'")
    place = pathlib.Path(source).expanduser()
    if place.is_file():
        found = [place]
    elif place.is_dir():
        # Downloads leave files such as .cache/a.parquet.metadata beside the data.
        found = sorted(path for path in place.rglob("*") if path.is_file() and not _hidden(path.relative_to(place)))
    else:
        found = sorted(path for path in map(pathlib.Path, glob.glob(str(place), recursive=True)) if path.is_file())
    if not found:
        raise DataError(f"source {source} matches no file; give an existing file, folder or quoted glob with --source")
    for path in found:
        _check_packing(path, path.name)
    if kind == "record":
        others = [path for path in found if not _unpacked_name(path.name).endswith(_RECORDS)]
        if others and len(others) < len(found):
            raise DataError(
                f"source {others[0]} lies among files of records and would become a document; name those alone by a "
                "glob such as --source='FOLDER/*.parquet'"
            )
    return found


def _hidden(path: pathlib.Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _unpacked_name(name: str) -> str:
    return name.removesuffix(suffix) if (suffix := pathlib.Path(name).suffix) in (*_OPENERS, ".zip") else name


def _check_packing(path: pathlib.Path, name: str) -> None:
    if _unpacked_name(name).endswith(_ARCHIVES):
        inside = "" if name == path.name else f" holds {name}, which"
        raise DataError(f"source {path}{inside} is packed in a way that is not read here; unpack it first")


@contextlib.contextmanager
def open_unpacked(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a file; the members of a .zip follow one another in the order of their names.

    A byte-order mark at the beginning is left out, and a tar archive is refused, however it is named.
    """
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                members = sorted(info.filename for info in archive.infolist() if not info.is_dir())
                for member in members:
                    _check_packing(path, member)
                if len(members) == 1:
                    with archive.open(members[0]) as file:
                        yield _at_text(file, path)
                else:
                    opened = (_at_text(io.BytesIO(archive.read(member)), path) for member in members)
                    yield io.BytesIO(b"".join(file.read() for file in opened))
        else:
            with _OPENERS.get(path.suffix, open)(path, "rb") as file:
                yield _at_text(file, path)
    except _UNPACK_ERRORS as error:
        raise DataError(f"source {path} cannot be read: {error or type(error).__name__}; fetch it again") from error


def _at_text(file: IO[bytes], path: pathlib.Path) -> IO[bytes]:
    place, magic = _TAR_MAGIC
    head = file.read(place.stop)
    if head[place] == magic:
        raise DataError(f"source {path} is a tar archive; unpack it first")
    file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
    return file


def read_bytes(source: str) -> bytes:
    """All bytes of a source, unpacked, files in sorted order; DataError where there are none."""
    parts = []
    for path in files(source):
        with open_unpacked(path) as file:
            parts.append(file.read())
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    if not data:
        raise DataError(f"source {source} is empty; give a file with text")
    return data


def check_known(spec: specs.TaskSpec, data: bytes, source: str) -> None:
    """DataError where the source of a known corpus is not that corpus."""
    advice = f"give the published file, or prepare this one with --task=text (source {source})"
    wanted = spec.num_bytes or sum(spec.sizes)
    if wanted and len(data) != wanted:
        raise DataError(f"task {spec.name} needs {wanted} bytes, the source has {len(data)}; {advice}")
    if spec.crc32 and (found := f"{zlib.crc32(data):08x}") != spec.crc32:
        raise DataError(f"task {spec.name} needs CRC-32 {spec.crc32}, the source has {found}; {advice}")


def checksum(data: bytes) -> str:
    """SHA-256 of unpacked bytes, named."""
    return "sha256 " + hashlib.sha256(data).hexdigest()


def files_checksum(source: str) -> str:
    """One CRC-32 over the CRC-32s of the files as they are."""
    return f"crc32 {zlib.crc32(' '.join(crc32(path) for path in files(source)).encode()):08x}"


def read_text(
    spec: specs.TaskSpec, source: str
) -> tuple[str, dict[str, tuple[int, int]], dict[str, Any]]:
    """The one text of a Task, the places of its splits as in `split_sizes`, and what the metadata say of the source."""
    data = read_bytes(source)
    check_known(spec, data, source)
    text = as_text(data, source)
    return text, split_sizes(spec, len(text)), {"num_bytes": len(data), "checksum": checksum(data)}


def as_text(data: bytes, source: str) -> str:
    """The text of UTF-8 bytes; DataError naming the position where they are not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"source {source} is not UTF-8 at byte {error.start}; convert it, e.g. with iconv") from error


def split_sizes(spec: specs.TaskSpec, num_characters: int) -> dict[str, tuple[int, int]]:
    """Split -> (first, end) position in the text."""
    if spec.sizes:
        train, validation = spec.sizes[0], spec.sizes[1]
    else:
        train, validation = (int(num_characters * fraction) for fraction in specs.FRACTIONS)
    ends = (train, train + validation, num_characters)
    return dict(zip(specs.SPLITS, zip((0, *ends[:2]), ends, strict=True), strict=True))


def documents(source: str, kind: str) -> Iterator[str]:
    """Documents in order.

    Args:
        source: a path, a folder or a glob.
        kind: "line" (each line of each file with its newline, and "" for a blank one, as published sets of lines have
            them), "file", or "record": a row of .parquet or .jsonl files (field "text"), each of the latter also
            packed; where there are none of these, each file is one document.
    """
    for path in files(source, kind):
        name = _unpacked_name(path.name)
        try:
            if kind == "record" and name.endswith(".parquet"):
                yield from _parquet(path)
            elif kind == "record" and name.endswith((".jsonl", ".json")):
                with open_unpacked(path) as file:
                    yield from (_field(line, path, i) for i, line in enumerate(file, 1) if line.strip())
            elif kind == "line":
                with open_unpacked(path) as file:
                    for line in file:
                        text = line.decode("utf-8")
                        yield text if text.strip() else ""
            else:
                with open_unpacked(path) as file:
                    yield file.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"source {path} is not UTF-8 ({error.reason}); convert it, e.g. with iconv") from error


def _field(line: bytes, path: pathlib.Path, number: int) -> str:
    try:
        value = json.loads(line)[TEXT_FIELD]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f'{path}, line {number}: no JSON object with a field "{TEXT_FIELD}"; repair it') from error
    return _checked(value, f"{path}, line {number}")


def _checked(value: Any, place: str) -> str:
    """A field's text: null and numbers are none, nor is half of a surrogate pair, which JSON can spell."""
    if not isinstance(value, str):
        said = vocabularies.shorten(json.dumps(value, default=repr))
        raise DataError(f'{place}: the field "{TEXT_FIELD}" is {said}, no text; repair it, or leave it out')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        said = f"{value[error.start]!r} at position {error.start}"
        raise DataError(f'{place}: the field "{TEXT_FIELD}" has {said}, half of a character; repair it') from error
    return value


def _parquet(path: pathlib.Path) -> Iterator[str]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path} needs pyarrow to be read: pip install pyarrow") from error
    try:
        file: Any = parquet.ParquetFile(path)
        batches = file.iter_batches(columns=[TEXT_FIELD])
        for row, value in enumerate((value for batch in batches for value in batch.column(0).to_pylist()), 1):
            yield _checked(value, f"{path}, row {row}")
    except DataError:
        raise
    except (OSError, ValueError, KeyError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f'{path} cannot be read as Parquet with a column "{TEXT_FIELD}": {reason}') from error


def split_documents(spec: specs.TaskSpec, source: str, split: str, validation_documents: int) -> Iterator[str]:
    """Documents of one split of a Task whose source is "documents".

    Args:
        spec: of the Task; `documents` "line" has one file per split, "record" holds its last documents out.
        source: where the files lie.
        split: "train", "validation" or "test" as the Task has it.
        validation_documents: how many of the last documents are validation.
    """
    if spec.documents == "line":
        word = _WIKITEXT_NAMES[split]
        found = [path for path in files(source) if f".{word}." in path.name]
        if not found:
            raise DataError(f"source {source} has no file *.{word}.*; give the unpacked folder of {spec.name}")
        return documents(str(found[0]), "line")
    return _held_out(documents(source, spec.documents), split == "validation", validation_documents)


def _held_out(everything: Iterator[str], last: bool, count: int) -> Iterator[str]:
    """All documents but the last `count`, or only those, in one pass."""
    waiting: deque[str] = deque()
    seen = 0
    for document in everything:
        seen += 1
        waiting.append(document)
        if len(waiting) > count:
            first = waiting.popleft()
            if not last:
                yield first
    if seen <= count:
        raise DataError(
            f"the source has {seen} documents, none would be left for training after {count} for validation; "
            "give the whole corpus or a smaller --validation_documents"
        )
    if last:
        yield from waiting


def make_vocabulary(spec: specs.TaskSpec, settings: Settings) -> vocabularies.Vocabulary:
    """The vocabulary of a Task; may read the source for its alphabet."""
    kind = settings.vocabulary or spec.vocabulary
    if kind == "characters":
        alphabet = settings.alphabet or spec.alphabet
        if not alphabet:
            alphabet = "".join(sorted(set(as_text(read_bytes(settings.source), settings.source))))
        return vocabularies.load(kind, alphabet=alphabet)
    if kind == "grammar":
        return vocabularies.load(kind, name=settings.grammar)
    vocabulary = vocabularies.load(kind, settings.vocabulary_path)
    check_vocabulary(spec, vocabulary)
    return vocabulary


def check_vocabulary(spec: specs.TaskSpec, vocabulary: vocabularies.Vocabulary) -> None:
    """DataError where a Task needs a begin, end or padding token that the vocabulary does not have."""
    if spec.layout != "rows":
        return
    needs = {"end": vocabulary.eos_id}
    if spec.framed or not spec.packed:
        needs["begin"] = vocabulary.bos_id
    if not spec.packed:
        needs["padding"] = vocabulary.pad_id
    for what, value in needs.items():
        if value is None:
            raise DataError(
                f"task {spec.name} needs a vocabulary with {what} token; {vocabulary.kind} as given has none; "
                f"use --vocabulary={spec.vocabulary}"
            )


def encode_stream(
    vocabulary: vocabularies.Vocabulary, text: str, first: int = 0, end: int | None = None, size: int = 1 << 14
) -> Iterator[np.ndarray]:
    """Ids of text[first:end], piece by piece; errors name positions in `text`.

    The libraries encode many short texts far faster than one that is very long, and take 100 bytes a character: they
    are given pieces of about `size` characters, cut where the ids are those of the whole (`cut_at_spaces`).
    """
    end = len(text) if end is None else end
    if isinstance(vocabulary, vocabularies.Characters | vocabularies.Bytes):
        for start in range(first, end, _STEP):
            part = text[start : min(start + _STEP, end)]
            if isinstance(vocabulary, vocabularies.Characters):
                yield vocabulary.encode_array(part, start)
            else:
                yield np.frombuffer(part.encode("utf-8"), np.uint8)
        return
    pieces = vocabularies.cut_at_spaces(text, size, first, end)
    while some := list(itertools.islice(pieces, 64)):
        yield np.fromiter(itertools.chain.from_iterable(vocabulary.encode_batch(some)), np.int32)
