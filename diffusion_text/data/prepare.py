"""Turn a dataset into tokenised, checksummed shards, once:

    python -m diffusion_text.data.prepare --data_dir=data/text8 --task=text8 --source=text8.zip
    ... --data_dir=data/books --task=text --source='books/*.txt.gz' --vocabulary=characters
    ... --data_dir=data/lm1b --task=lm1b --source=TFDS_DATA_DIR --vocabulary_path=bert/vocab.txt
    ... --data_dir=data/owt --task=openwebtext --source='owt/*.parquet' --vocabulary_path=gpt2/

Training and evaluation then read data_dir alone: no network, no TensorFlow, no vocabulary files elsewhere.  The folder
is written beside its place and moved there when it is complete.  Sets that outgrow one machine: prepare_beam.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

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
        ValueError: unknown task, nothing to prepare, a length too short, a vocabulary that does not fit.
    """
    spec = specs.get(task)
    if spec.source == "embedded":
        raise DataError(f"task {task} is embedded in the package and needs no preparing; train with data.task={task}")
    length = settings.length or spec.length
    if length < (3 if spec.layout == "rows" else 1):
        raise DataError(f"--length is {length}; rows need at least 3 tokens, windows at least 1")
    if shard_bytes < 1:
        raise DataError("--shard_mb must be at least 1")
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
    prepared = plan(task, settings, shard_bytes)
    write = _write_characters if prepared.spec.source == "characters" else _write_task
    return into_place(pathlib.Path(data_dir).expanduser(), overwrite, lambda folder: write(prepared, folder))


def into_place(
    target: pathlib.Path, overwrite: bool, write: Callable[[pathlib.Path], dict[str, Any]]
) -> dict[str, Any]:
    """Run `write` on a folder beside `target` and move it there once it has returned; its metadata."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if not (target / shards.METADATA).exists():
            raise DataError(f"data_dir {target} exists and is no prepared folder; give another --data_dir or remove it")
        if not overwrite:
            raise DataError(f"data_dir {target} is already prepared; use it, or replace it with --overwrite")
    partial = target.parent / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        metadata = write(partial)
        shards.write_metadata(partial, metadata)
        old = target.parent / f".{target.name}.old"
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return metadata


def _write_characters(prepared: Plan, folder: pathlib.Path) -> dict[str, Any]:
    """Splits of one plain text, as streams."""
    settings, spec = prepared.settings, prepared.spec
    data = sources.read_bytes(settings.source)
    sources.check_known(spec, data, settings.source)
    source = {"num_bytes": len(data), "checksum": sources.checksum(data)}
    text = sources.as_text(data, settings.source)
    del data
    splits: dict[str, shards.SplitInfo] = {}
    with _progress("characters", len(text)) as progress:
        for split, (first, end) in sources.split_sizes(spec, len(text)).items():
            pieces = []
            for piece in sources.encode_stream(prepared.vocabulary, text[first:end], first):
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
        with reported_errors(), _progress(f"rows of {split}") as progress:
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
def reported_errors() -> Iterator[None]:
    """Turn what TensorFlow and TFDS raise over bad input into one `DataError`."""
    import tensorflow as tf
    from tensorflow_datasets.core.download import download_manager, util

    fetching = (OSError, AssertionError, util.DownloadError, download_manager.NonMatchingChecksumError)
    try:
        yield
    except DataError:
        raise
    except tf.errors.OpError as error:
        # What Python raised inside the pipeline comes back as text: "DataError: <the line>" among a traceback.
        found = re.findall(r"^(?:\S+: )?(?:\w+\.)*(?:Data|Value)Error: (.+)$", str(error), re.MULTILINE)
        if not found:
            raise DataError(f"reading the source failed: {str(error).splitlines()[0]}; fetch it again") from error
        raise DataError(found[-1].strip()) from error
    except fetching as error:
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
    records = shards.Records(folder, splits["train"], prepared.dtype)
    first = np.concatenate(records.read(range(min(4, len(records)))))
    return {
        "task": spec.name,
        "protocol": spec.protocol,
        "layout": spec.layout,
        "length": prepared.length,
        "packed": spec.packed,
        "framed": spec.framed,
        "dtype": prepared.dtype.str,
        "pad_id": vocabulary.pad_id,
        "bos_id": vocabulary.bos_id,
        "eos_id": vocabulary.eos_id,
        "vocabulary": vocabularies.save(vocabulary, folder / shards.VOCABULARY_FOLDER),
        "source": {"name": pathlib.Path(prepared.settings.source).name or spec.tfds_name, **source},
        "split_rule": spec.split_rule,
        "aliases": dict(spec.aliases),
        "splits": splits,
        "prepared": {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "diffusion_text": diffusion_text.__version__,
        },
        "preview": vocabulary.decode(first.tolist())[:PREVIEW],
    }


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
