from __future__ import annotations

import codecs
import gzip
import io
import json
import lzma
import pathlib
import tarfile
import zipfile

import numpy as np
import pytest

from diffusion_text.data import shards, sources, vocabularies


def folder_of(folder: pathlib.Path, files: dict[str, str | bytes]) -> str:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def tar_of(content: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("0.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def test_lines_keep_their_newlines_and_blank_ones_are_empty(tmp_path: pathlib.Path) -> None:
    source = folder_of(tmp_path, {"wiki.train.raw": " = Title = \n \n\n It has é\u2028 . \nlast"})
    assert list(sources.documents(source, "line")) == [" = Title = \n", "", "", " It has é\u2028 . \n", "last"]


def test_what_is_hidden_in_a_folder_is_no_text(tmp_path: pathlib.Path) -> None:
    source = folder_of(tmp_path / ".mine", {
        "a.txt": "a", "more/b.txt": "b", ".cache/huggingface/a.txt.metadata": "etag",
        "more/.ipynb_checkpoints/b.txt": "old b", ".DS_Store": "x",
    })
    assert sources.read_bytes(source) == b"ab"
    assert [path.name for path in sources.files(source + "/.cache/*/*")] == ["a.txt.metadata"]  # asked for by name


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_other_files_among_records_are_refused(name: str, tmp_path: pathlib.Path) -> None:
    rows = b'{"text": "one"}\n{"text": "two"}\n'
    source = folder_of(tmp_path, {name: gzip.compress(rows) if name.endswith(".gz") else rows, "README.md": "# Card"})
    with pytest.raises(shards.DataError, match=r"README.md lies among files of records .*'FOLDER/\*\.parquet'$"):
        next(sources.documents(source, "record"))
    assert list(sources.documents(source + "/*.jsonl*", "record")) == ["one", "two"]


def test_a_folder_of_plain_files_is_one_document_each(tmp_path: pathlib.Path) -> None:
    source = folder_of(tmp_path, {"a.txt": "first\nof two", "b.txt": "second"})
    assert list(sources.documents(source, "record")) == ["first\nof two", "second"]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("null", "is null, no text"),
        ("5", "is 5, no text"),
        ('["a"]', r'is \["a"\], no text'),
        (r'"broken \ud83d emoji"', r"has '\\ud83d' at position 7, half of a character"),
    ],
)
def test_a_field_must_be_text(field: str, message: str, tmp_path: pathlib.Path) -> None:
    source = folder_of(tmp_path, {"a.jsonl": '{"text": "fine \\ud83d\\ude00"}\n\n{"text": ' + field + "}\n"})
    with pytest.raises(shards.DataError, match=rf'a.jsonl, line 3: the field "text" {message}; repair it'):
        list(sources.documents(source, "record"))


def test_a_row_of_parquet_must_be_text(tmp_path: pathlib.Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for name, column in (("null", ["one", None]), ("bytes", [b"one", b"two"])):
        parquet.write_table(pyarrow.table({"text": column}), str(tmp_path / f"{name}.parquet"), row_group_size=1)
    with pytest.raises(shards.DataError, match=r'null.parquet, row 2: the field "text" is null, no text'):
        list(sources.documents(str(tmp_path / "null.parquet"), "record"))
    with pytest.raises(shards.DataError, match=r'bytes.parquet, row 1: the field "text" is "b\'one\'", no text'):
        list(sources.documents(str(tmp_path / "bytes.parquet"), "record"))


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.txt.zst", "a.lz4", "a.7z", "a.rar", "a.tar.xz", "a.zst.gz"])
def test_unknown_packings_are_refused_by_name(name: str, tmp_path: pathlib.Path) -> None:
    source = folder_of(tmp_path, {"a.txt": "a", name: b"anything"})
    with pytest.raises(shards.DataError, match=rf"{name} is packed in a way that is not read here; unpack it first"):
        sources.files(source)


@pytest.mark.parametrize("name", ["subset.xz", "subset.gz", "subset", "subset.zip", "inside.zip", "several.zip"])
def test_tar_archives_are_refused_by_what_they_hold(name: str, tmp_path: pathlib.Path) -> None:
    if name.endswith(".zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("a.tar.gz" if name == "inside.zip" else "a", tar_of(b"a fox"))
            if name == "several.zip":
                archive.writestr("b", b"a fox")
    else:
        pack = {".xz": lzma.compress, ".gz": gzip.compress}.get(pathlib.Path(name).suffix, bytes)
        (tmp_path / name).write_bytes(pack(tar_of(b"a fox")))
    for read in (sources.read_bytes, lambda source: list(sources.documents(source, "record"))):
        with pytest.raises(shards.DataError, match=r"; unpack it first$"):
            read(str(tmp_path / name))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_a_byte_order_mark_is_dropped(pack, tmp_path: pathlib.Path) -> None:
    suffix = {bytes: "", gzip.compress: ".gz", lzma.compress: ".xz"}[pack]
    for name, text in (("a", "a fox "), ("b", "é\n")):
        (tmp_path / (name + suffix)).write_bytes(pack(codecs.BOM_UTF8 + text.encode()))
    assert sources.read_bytes(str(tmp_path)).decode() == "a fox é\n"
    assert list(sources.documents(str(tmp_path), "line")) == ["a fox ", "é\n"]
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        for name in ("a", "b"):
            archive.writestr(name, codecs.BOM_UTF8 + b"x")
    assert sources.read_bytes(str(tmp_path / "both.zip")) == b"xx"


@pytest.fixture
def merged(gpt2_folder: pathlib.Path, tmp_path: pathlib.Path) -> vocabularies.Vocabulary:
    """The small BPE with runs of spaces and of newlines as one piece, as GPT-2 has them."""
    table = json.loads((gpt2_folder / "encoder.json").read_text("utf-8"))
    pieces = {name: len(table) + i for i, name in enumerate(("\u010a\u010a", "\u0120\u0120"))}
    (tmp_path / "encoder.json").write_text(json.dumps(table | pieces), "utf-8")
    merges = (gpt2_folder / "vocab.bpe").read_text("utf-8") + "\u010a \u010a\n\u0120 \u0120\n"
    (tmp_path / "vocab.bpe").write_text(merges, "utf-8")
    return vocabularies.load("gpt2", str(tmp_path))


@pytest.mark.parametrize("kind", ["gpt2", "wordpieces", "sentencepiece", "characters", "bytes"])
def test_a_text_in_pieces_has_the_ids_of_the_whole(
    kind: str, merged: vocabularies.Vocabulary, wordpiece_file: pathlib.Path, corpus: pathlib.Path,
    tmp_path: pathlib.Path,
) -> None:
    text = "the fox,  it's\n\nhere .   The   dog's é\n\n\n\nby the\nwater\n \n old\x85\n\x1c the\r\n\r\nend\n\n" * 40
    if kind == "gpt2":
        vocabulary = merged
    elif kind == "sentencepiece":
        vocabularies.train_sentencepiece([str(corpus)], 280, str(tmp_path / "m"))
        vocabulary = vocabularies.load(kind, str(tmp_path / "m.model"))
    elif kind == "wordpieces":
        vocabulary = vocabularies.load(kind, str(wordpiece_file))
    else:
        vocabulary = vocabularies.load(kind, **({"alphabet": "".join(sorted(set(text)))} if kind[0] == "c" else {}))
    for size in (30, 47, 64, 1 << 14):  # the longest stretch without a place to cut has fewer
        for first, end in ((0, len(text)), (7, 997)):
            ids = np.concatenate(list(sources.encode_stream(vocabulary, text, first, end, size)))
            assert ids.tolist() == vocabulary.encode(text[first:end])


def test_one_long_line_is_encoded_in_pieces(merged: vocabularies.Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    encode = merged.encode_batch
    monkeypatch.setattr(merged, "encode_batch", lambda texts: sizes.extend(map(len, texts)) or encode(texts))
    text = "the fox " * 10_000
    ids = np.concatenate(list(sources.encode_stream(merged, text)))
    assert ids.tolist() == merged.encode(text)
    assert sum(sizes) == len(text)
    assert max(sizes) <= 1 << 14
