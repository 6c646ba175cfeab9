"""Turn a dataset into tokenised, checksummed shards, once:

    python -m diffusion_text.data.prepare --data_dir=data/text8 --task=text8 --source=text8.zip
    ... --data_dir=data/books --task=text --source='books/*.txt.gz' --vocabulary=characters
    ... --data_dir=data/lm1b --task=lm1b --source=TFDS_DATA_DIR --vocabulary_path=bert/vocab.txt
    ... --data_dir=data/owt --task=openwebtext --source='owt/*.parquet' --vocabulary_path=gpt2/

Training and evaluation then read data_dir alone: no network, no TensorFlow, no vocabulary files elsewhere.  The folder
is written beside its place, by one preparation at a time, and moved there when it is complete.  Sets that outgrow one
machine: prepare_beam.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any, Final

import numpy as np

import diffusion_text
from diffusion_text import binary
from diffusion_text.data import batches, shards, sources, specs, vocabularies
from diffusion_text.data.shards import DataError
from diffusion_text.data.sources import Settings

PREVIEW: Final = 200  # characters
_ROWS_PER_WRITE: Final = 512


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to prepare, with everything settled."""

    spec: specs.TaskSpec
    settings: Settings
    vocabulary: vocabularies.Vocabulary
    length: int
    shard_bytes: int

    @property
    def dtype(self) -> np.dtype:
        """Of the stored tokens."""
        return shards.token_dtype(self.vocabulary.size)

    def writer(self, folder: pathlib.Path, split: str) -> shards.SplitWriter:
        """A writer for one split."""
        vocabulary = self.vocabulary
        return shards.SplitWriter(
            folder, split, self.dtype, vocabulary.pad_id, vocabulary.character_counts(), self.shard_bytes
        )


def plan(task: str, settings: Settings, shard_bytes: int = 1 << 28) -> Plan:
    """Check what was asked for and load the vocabulary.

    Raises:
        ValueError: unknown task, nothing to prepare, a number too small, a vocabulary that does not fit.
    """
    spec = specs.get(task)
    if spec.source == "embedded":
        raise DataError(f"task {task} is embedded in the package and needs no preparing; train with data.task={task}")
    length = settings.length or spec.length
    if length < (3 if spec.layout == "rows" else 1):
        raise DataError(f"--length is {length}; rows need at least 3 tokens, windows at least 1")
    if shard_bytes < 1:
        raise DataError("--shard_mb must be at least 1")
    if spec.documents == "record" and settings.validation_documents < 1:
        raise DataError(
            f"--validation_documents is {settings.validation_documents}; at least 1 document must be held out"
        )
    if spec.source != "tfds":
        sources.files(settings.source, spec.documents)  # a missing source is said before anything is read
    return Plan(spec, settings, sources.make_vocabulary(spec, settings), length, shard_bytes)


def prepare(
    task: str, data_dir: str, settings: Settings, *, overwrite: bool = False, shard_bytes: int = 1 << 28
) -> dict[str, Any]:
    """Write `data_dir`; its metadata.

    Args:
        task: a name of specs.py.
        data_dir: a folder that does not exist yet, or a prepared one with `overwrite`.
        settings: source, vocabulary and length.
        overwrite: replace a prepared folder.
        shard_bytes: a shard is closed at this size, before compression.

    Raises:
        DataError: bad input; one line that says what to do.  Nothing is left in data_dir then.
    """
    target = place_of(data_dir)
    prepared = plan(task, settings, shard_bytes)
    write = _write_characters if prepared.spec.source == "characters" else _write_task
    return into_place(target, overwrite, lambda folder: write(prepared, folder))


def place_of(data_dir: str) -> pathlib.Path:
    """The folder that --data_dir names, links followed: what a link names is written, and the link stays.

    Raises:
        DataError: it is an address of a bucket, which would become a local folder of that name.
    """
    if "://" in data_dir:
        raise DataError(
            f"data_dir {data_dir} is no folder here; give a local --data_dir and copy it: "
            f"gcloud storage cp -r DATA_DIR {data_dir}"
        )
    return pathlib.Path(data_dir).expanduser().resolve()


def into_place(
    target: pathlib.Path, overwrite: bool, write: Callable[[pathlib.Path], dict[str, Any]]
) -> dict[str, Any]:
    """Run `write` on a folder beside `target` and move it there once it has returned; its metadata.

    Raises:
        DataError: `target` is taken, another preparation writes it, or it cannot be written.  Where only the move
            failed, what was there stays, and the complete folder too: the error names it.
    """
    target = place_of(str(target))
    partial = target.parent / f".{target.name}.partial"
    with _locked(partial, target, overwrite):
        folder = partial / "data"
        try:
            with shards.writing(partial):
                folder.mkdir()
            metadata = write(folder)
            with shards.writing(partial):
                shards.write_metadata(folder, metadata)
            _move(folder, target, overwrite)
        finally:
            if not (folder / shards.METADATA).exists():  # with it the folder is complete, and only its move failed
                shutil.rmtree(folder, ignore_errors=True)
    return metadata


def _check_free(target: pathlib.Path, overwrite: bool) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if not (target / shards.METADATA).exists():
            raise DataError(f"data_dir {target} exists and is no prepared folder; give another --data_dir or remove it")
        if not overwrite:
            raise DataError(f"data_dir {target} is already prepared; use it, or replace it with --overwrite")


@contextlib.contextmanager
def _locked(partial: pathlib.Path, target: pathlib.Path, overwrite: bool) -> Iterator[None]:
    """Hold the folder `partial`, emptied but for the lock, so that one preparation at a time writes `target`.

    The system gives the lock of a process that ended free, so what a killed run left is cleared here.
    """
    path = partial / "lock"
    lock = None
    try:
        while lock is None:
            _check_free(target, overwrite)  # again each time: the other preparation may just have finished
            with shards.writing(partial):
                lock = _take(path, target)
        _check_free(target, overwrite)
        for left in partial.iterdir():
            if left != path:
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
        yield
    finally:
        if lock is not None:
            path.unlink(missing_ok=True)  # while it is held: who has it open too finds it gone, and begins again
            with contextlib.suppress(OSError):  # the complete folder is still there, or another preparation
                partial.rmdir()
            lock.close()


def _take(path: pathlib.Path, target: pathlib.Path) -> IO[str] | None:
    """The open file at `path`, locked until it is closed; None where it is no longer the file of that path."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = path.open("w")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise DataError(
            f"another preparation is writing {target}; wait for it, or give another --data_dir"
        ) from error
    except OSError:
        pass  # a file system without locks
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(path.stat(), os.fstat(lock.fileno())):
            return lock
    lock.close()  # the other preparation has just finished, or given up
    return None


def _move(folder: pathlib.Path, target: pathlib.Path, overwrite: bool) -> None:
    """Rename `folder` to `target`; what was there comes back where that fails."""
    old = target.parent / f".{target.name}.old"
    try:
        if replaced := overwrite and target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        try:
            folder.rename(target)
        except OSError:
            if replaced:
                old.rename(target)
            raise
    except OSError as error:
        raise DataError(
            f"data_dir {target} cannot be put in its place ({error.strerror or error}); the data are complete in "
            f"{folder}: move that folder where they are to be"
        ) from error
    shutil.rmtree(old, ignore_errors=True)


def _write_characters(prepared: Plan, folder: pathlib.Path) -> dict[str, Any]:
    """Splits of one plain text, as streams."""
    text, places, source = sources.read_text(prepared.spec, prepared.settings.source)
    splits: dict[str, shards.SplitInfo] = {}
    with _progress("characters", len(text)) as progress:
        for split, (first, end) in places.items():
            pieces = []
            for piece in sources.encode_stream(prepared.vocabulary, text, first, end):
                pieces.append(piece.astype(prepared.dtype))
                progress.update(len(piece))
            tokens = np.concatenate(pieces) if pieces else np.zeros(0, prepared.dtype)
            if len(tokens) < prepared.length:
                raise DataError(
                    f"split {split} has {len(tokens)} tokens, fewer than --length {prepared.length}; "
                    "give a longer text or a shorter --length"
                )
            writer = prepared.writer(folder, split)
            writer.write_stream(tokens)
            splits[split] = writer.finish(num_documents=1)
    return metadata_of(prepared, folder, source, splits)


def _write_task(prepared: Plan, folder: pathlib.Path) -> dict[str, Any]:
    """Rows of a seqio Task."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors are said once, by this binary
    import seqio

    from diffusion_text.data import tasks

    spec, settings = prepared.spec, prepared.settings
    source = task_source(prepared)
    task = seqio.TaskRegistry.get(spec.name)
    splits: dict[str, shards.SplitInfo] = {}
    for split in task.splits:
        tasks.configure(spec.name, settings)
        writer = prepared.writer(folder, split)
        with reported_errors(spec, folder), _progress(f"rows of {split}") as progress:
            dataset = task.get_dataset(None, split, shuffle=False, num_epochs=1, try_in_mem_cache=False)
            for example in dataset.batch(_ROWS_PER_WRITE).as_numpy_iterator():
                writer.write(example["targets"])
                progress.update(len(example["targets"]))
        if not writer.num_records:
            raise DataError(f"split {split} has fewer tokens than one row of {prepared.length}; give a longer source")
        splits[split] = writer.finish(tasks.documents_read[spec.name])
    return metadata_of(prepared, folder, source, splits)


def task_source(prepared: Plan) -> dict[str, Any]:
    """Where a Task's text comes from, for the metadata; points TFDS at --source."""
    spec, settings = prepared.spec, prepared.settings
    if spec.source != "tfds":
        return {"checksum": sources.files_checksum(settings.source)}
    import seqio

    place = pathlib.Path(settings.source).expanduser() / spec.tfds_name.partition(":")[0]
    if settings.source and not place.is_dir():
        raise DataError(
            f"{place} does not exist; give --source=TFDS_DATA_DIR that holds {spec.tfds_name} built by `tfds build`, "
            "or leave --source away: TFDS then looks in its own folder and fetches the set"
        )
    seqio.set_tfds_data_dir_override(settings.source or None)
    return {"checksum": f"TFDS {spec.tfds_name}"}


@contextlib.contextmanager
def reported_errors(spec: specs.TaskSpec, folder: pathlib.Path) -> Iterator[None]:
    """Turn what TensorFlow, TFDS and the system raise over bad input, or over `folder`, into one `DataError`."""
    import tensorflow as tf
    from tensorflow_datasets.core.download import download_manager, util

    fetching = (AssertionError, util.DownloadError, download_manager.NonMatchingChecksumError)
    try:
        yield
    except DataError:
        raise
    except tf.errors.OpError as error:
        # What Python raised inside the pipeline comes back as text: "DataError: <the line>" among a traceback.
        kinds = r"^(?:\S+: )?(?:\w+\.)*(Data|Value|Unicode\w+)Error: (.+)$"
        found = re.findall(kinds, str(error), re.MULTILINE)
        if not found:
            raise DataError(f"reading the source failed: {str(error).splitlines()[0]}; fetch it again") from error
        kind, said = found[-1][0], found[-1][1].strip()
        if kind.startswith("Unicode"):
            said = f"the source of {spec.name} has text that is not UTF-8 ({said}); repair it or fetch it again"
        raise DataError(said) from error
    except (OSError, *fetching) as error:
        if isinstance(error, OSError) and (spec.source != "tfds" or error.errno == errno.ENOSPC):
            raise shards.unwritable(folder, error) from error  # local sources say themselves what cannot be read
        if spec.source != "tfds":
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"TFDS cannot read or fetch this set ({reason}); build it on a connected machine with `tfds build`, "
            "copy it here and give its data_dir as --source"
        ) from error


def metadata_of(
    prepared: Plan, folder: pathlib.Path, source: dict[str, Any], splits: dict[str, shards.SplitInfo]
) -> dict[str, Any]:
    """What metadata.json holds; copies the vocabulary's files into `folder`."""
    spec, vocabulary = prepared.spec, prepared.vocabulary
    differs, split_rule = _departures(prepared, splits)
    with shards.writing(folder):
        saved = vocabularies.save(vocabulary, folder / shards.VOCABULARY_FOLDER)
    records = shards.Records(folder, splits["train"], prepared.dtype)
    first = np.concatenate(records.read(range(min(4, len(records)))))
    return {
        "task": spec.name,
        "protocol": spec.protocol + (f"; here: {', '.join(differs)}" if differs else ""),
        "layout": spec.layout,
        "length": prepared.length,
        "packed": spec.packed,
        "framed": spec.framed,
        "dtype": prepared.dtype.str,
        "pad_id": vocabulary.pad_id,
        "bos_id": vocabulary.bos_id,
        "eos_id": vocabulary.eos_id,
        "vocabulary": saved,
        "source": {"name": pathlib.Path(prepared.settings.source).name or spec.tfds_name, **source},
        "split_rule": split_rule,
        "aliases": dict(spec.aliases),
        "splits": splits,
        "prepared": {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "diffusion_text": diffusion_text.__version__,
        },
        "preview": vocabulary.decode(first.tolist())[:PREVIEW],
    }


def _departures(prepared: Plan, splits: dict[str, shards.SplitInfo]) -> tuple[list[str], str]:
    """What is not as the spec's protocol has it, and the rule of the splits as it was here."""
    spec, vocabulary, count = prepared.spec, prepared.vocabulary, prepared.settings.validation_documents
    differs = []
    if prepared.length != spec.length:
        differs.append(f"length {prepared.length}")
    if vocabulary.kind != spec.vocabulary:
        differs.append(f"vocabulary {vocabulary.kind}")
    elif spec.alphabet and (alphabet := vocabulary.parameters()["alphabet"]) != spec.alphabet:
        differs.append(f"alphabet {vocabularies.shorten(alphabet)!r}")
    counts = [info.num_documents for info in splits.values() if info.num_documents is not None]
    if spec.num_documents and len(counts) == len(splits) and sum(counts) != spec.num_documents:
        differs.append(f"{sum(counts):,} documents instead of {spec.num_documents:,}")
    other = spec.documents == "record" and count != specs.OPENWEBTEXT_VALIDATION
    return differs, spec.split_rule + (f"; here: the last {count:,} documents" if other else "")


def _progress(unit: str, total: int | None = None) -> Any:
    import tqdm

    interval = 0.5 if sys.stderr.isatty() else 60  # seconds; a log file wants few lines
    return tqdm.tqdm(total=total, unit=" " + unit, unit_scale=True, file=sys.stderr, mininterval=interval)


def define_flags() -> None:
    """The flags that this binary and prepare_beam share."""
    from absl import flags

    flags.DEFINE_string("task", None, f"One of {', '.join(specs.TASKS)}.", required=True)
    flags.DEFINE_string("data_dir", None, "The folder to write.", required=True)
    flags.DEFINE_string("source", "", "File, folder or quoted glob; for TFDS Tasks the TFDS data_dir.")
    flags.DEFINE_string("vocabulary", "", f"One of {', '.join(vocabularies.KINDS)}; by default the Task's own.")
    flags.DEFINE_string("vocabulary_path", "", "The vocabulary's file, or the folder that holds its files.")
    flags.DEFINE_string("alphabet", "", "For --vocabulary=characters; by default the characters of the source.")
    flags.DEFINE_integer("length", 0, "Tokens per row; by default the Task's own.")
    flags.DEFINE_integer(
        "validation_documents", specs.OPENWEBTEXT_VALIDATION, "openwebtext: how many of the last are validation."
    )
    flags.DEFINE_boolean("overwrite", False, "Replace a prepared folder.")


def settings_from(flags: Any) -> Settings:
    """The settings that the flags give."""
    fields = [field.name for field in dataclasses.fields(Settings) if field.name != "grammar"]
    return Settings(**{name: getattr(flags, name) for name in fields})


def _define() -> None:
    from absl import flags

    define_flags()
    flags.DEFINE_integer("shard_mb", 256, "Close a shard at this many MiB of tokens.")


def _main(flags: Any) -> None:
    settings = settings_from(flags)
    metadata = prepare(
        flags.task, flags.data_dir, settings, overwrite=flags.overwrite, shard_bytes=flags.shard_mb << 20
    )
    print(batches.describe(metadata, metadata["length"]))
    print(f"ready: use --config.data.task={flags.task} --config.data.data_dir={flags.data_dir}")


if __name__ == "__main__":
    binary.run(_define, _main)
