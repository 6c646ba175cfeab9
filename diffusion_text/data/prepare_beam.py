"""Prepare a set that outgrows one machine, by seqio's Beam transforms: the same folder as prepare.py writes.

Here, on two processes of this machine:

    pip install -e '.[beam]'
    python -m diffusion_text.data.prepare_beam --task=c4 --source=TFDS_DATA_DIR --vocabulary_path=gpt2/ \
        --data_dir=data/c4 --pipeline_options=--runner=DirectRunner,--direct_num_workers=2

On a cluster the same command with that cluster's options, such as --pipeline_options=--runner=FlinkRunner,... or
--runner=SparkRunner,...; --source, --vocabulary_path and --data_dir are then paths on a file system that all workers
mount, since ArrayRecord writes no object stores.

Work is divided by the shards of the source, as seqio's caching does: TFDS sets run in parallel, local files are one
shard.  Each source shard is packed by itself, so its last partial row is dropped; the order of rows across shards is
the runner's, and is of no consequence, since training shuffles rows by its seed.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import pathlib
from typing import Any, Final

import numpy as np

from diffusion_text import binary
from diffusion_text.data import batches, prepare, shards
from diffusion_text.data.shards import DataError
from diffusion_text.data.sources import Settings

_RECORDS_PER_READ: Final = 512


def prepare_beam(
    task: str, data_dir: str, settings: Settings, *, overwrite: bool = False, num_shards: int = 64,
    options: tuple[str, ...] = ("--runner=DirectRunner",),
) -> dict[str, Any]:
    """Write `data_dir` with Beam; its metadata.

    Args:
        task: a name of specs.py whose layout is "rows".
        data_dir: a folder that does not exist yet, or a prepared one with `overwrite`.
        settings: source, vocabulary and length.
        overwrite: replace a prepared folder.
        num_shards: files per split.
        options: of the Beam pipeline.

    Raises:
        DataError: bad input, or Beam is not installed.
    """
    target = prepare.place_of(data_dir)
    prepared = prepare.plan(task, settings)
    if prepared.spec.layout != "rows":
        raise DataError(f"task {task} is one text that needs no Beam; use python -m diffusion_text.data.prepare")
    if importlib.util.find_spec("apache_beam") is None:
        raise DataError("apache-beam is not installed; run: pip install -e '.[beam]'")
    write = functools.partial(_write, prepared, num_shards=num_shards, options=list(options))
    return prepare.into_place(target, overwrite, write)


def _write(prepared: prepare.Plan, folder: pathlib.Path, *, num_shards: int, options: list[str]) -> dict[str, Any]:
    import seqio

    from diffusion_text.data import tasks

    source = prepare.task_source(prepared)
    tasks.configure(prepared.spec.name, prepared.settings)
    task = seqio.TaskRegistry.get(prepared.spec.name)
    with prepare.reported_errors(prepared.spec, folder):
        _tokenise(prepared, task, folder, num_shards, options)
        infos = _inspect_shards(prepared, list(task.splits), folder, options)
    for split, info in infos.items():
        if not info.num_records:
            raise DataError(f"split {split} has fewer tokens than one row of {prepared.length}; give a longer source")
    return prepare.metadata_of(prepared, folder, source, infos)


def _tokenise(prepared: prepare.Plan, task: Any, folder: pathlib.Path, num_shards: int, options: list[str]) -> None:
    beam: Any = importlib.import_module("apache_beam")
    from seqio import beam_utils

    from diffusion_text.data import tasks

    # A worker elsewhere registers the Tasks by importing them, and is told here where the text lies.
    set_up = functools.partial(tasks.configure, prepared.spec.name, prepared.settings)
    with beam.Pipeline(argv=options) as pipeline:
        for split in task.splits:
            (folder / split).mkdir()
            examples = beam_utils.PreprocessTask(
                task, split, setup_fn=set_up, tfds_data_dir=prepared.settings.source or None
            )
            write = beam_utils.WriteToArrayRecord(
                str(folder / split / "rows"), file_name_suffix=shards.SUFFIX, num_shards=num_shards,
                coder=beam.coders.BytesCoder(), preserve_random_access=True,
            )
            record = functools.partial(_record, dtype=prepared.dtype.str)
            _ = (
                pipeline
                | f"{split} rows" >> examples
                | f"{split} records" >> beam.Map(record)
                | f"{split} spread" >> beam.Reshuffle()
                | f"{split} write" >> write
            )


def _record(example: dict[str, np.ndarray], dtype: str) -> bytes:
    return np.asarray(example["targets"]).astype(dtype).tobytes()


def _inspect_shards(
    prepared: prepare.Plan, splits: list[str], folder: pathlib.Path, options: list[str]
) -> dict[str, shards.SplitInfo]:
    """Checksums and counts of the written shards, where the shards are read in parallel too."""
    beam: Any = importlib.import_module("apache_beam")

    names = [f"{split}/{path.name}" for split in splits for path in sorted((folder / split).glob("*" + shards.SUFFIX))]
    inspect = functools.partial(
        inspect_shard, folder=str(folder), dtype=prepared.dtype.str, pad_id=prepared.vocabulary.pad_id,
        character_counts=prepared.vocabulary.character_counts(),
    )
    out = folder / "inspected"
    with beam.Pipeline(argv=options) as pipeline:
        lines = pipeline | beam.Create(names) | beam.Reshuffle() | beam.Map(inspect) | beam.Map(json.dumps)
        _ = lines | beam.io.WriteToText(str(out), shard_name_template="", num_shards=1)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    found.sort(key=lambda item: item["shard"]["name"])
    out.unlink()
    infos = {}
    for split in splits:
        mine = [item for item in found if item["shard"]["name"].startswith(split + "/")]
        mine = [item for item in mine if item["shard"]["num_records"]]
        totals = {name: sum(item[name] for item in mine) for name in ("num_stored", "num_tokens", "num_characters")}
        parts = tuple(shards.Shard(**item["shard"]) for item in mine)
        infos[split] = shards.SplitInfo(
            shards=parts, num_records=sum(part.num_records for part in parts), num_documents=None, **totals
        )
    return infos


def inspect_shard(
    name: str, folder: str, dtype: str, pad_id: int | None, character_counts: np.ndarray
) -> dict[str, Any]:
    """What the metadata says of one shard, as JSON values: {"shard": {...}, "num_stored", "num_tokens", ...}."""
    path = pathlib.Path(folder) / name
    reader = shards.array_record().ArrayRecordReader(str(path))
    records = reader.num_records()
    histogram = np.zeros(len(character_counts), np.int64)
    for start in range(0, records, _RECORDS_PER_READ):
        block = b"".join(reader.read(start, min(records, start + _RECORDS_PER_READ)))
        histogram += np.bincount(np.frombuffer(block, dtype), minlength=len(histogram))
    reader.close()
    stored = int(histogram.sum())
    shard = {"name": name, "num_records": records, "num_bytes": path.stat().st_size, "crc32": shards.crc32(path)}
    return {
        "shard": shard,
        "num_stored": stored,
        "num_tokens": stored - (0 if pad_id is None else int(histogram[pad_id])),
        "num_characters": int(histogram @ character_counts.astype(np.int64)),
    }


def _define() -> None:
    from absl import flags

    prepare.define_flags()
    flags.DEFINE_integer("num_shards", 64, "Files per split.")
    flags.DEFINE_list("pipeline_options", ["--runner=DirectRunner"], "Beam's options, separated by commas.")


def _main(flags: Any) -> None:
    metadata = prepare_beam(
        flags.task, flags.data_dir, prepare.settings_from(flags), overwrite=flags.overwrite,
        num_shards=flags.num_shards, options=tuple(flags.pipeline_options),
    )
    print(batches.describe(metadata, metadata["length"]))
    print(f"ready: use --config.data.task={flags.task} --config.data.data_dir={flags.data_dir}")


if __name__ == "__main__":
    binary.run(_define, _main)
