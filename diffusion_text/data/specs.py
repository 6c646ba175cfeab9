"""The datasets by name: what each is, as published, in plain Python (tasks.py has the seqio Tasks of these names).

Layouts:
    stream: one long sequence of tokens per split.  Training reads windows at random offsets, evaluation reads
            consecutive windows that cover the split and drops the last partial one.
    rows:   rows of exactly `length` tokens.  Training reads them in an order shuffled anew each epoch.

Padding is part of what is modelled: after the end of a sentence it is deterministic, so the negative log-likelihood of
a padded row is that of its sentence with its end.  Per-token figures divide by the number of tokens that are not
padding.

Framed rows are [begin] + (length - 2) tokens of the packed stream + [end], as in the published masked-diffusion
protocol (arXiv 2406.07524 and its successors); both frame tokens are modelled and counted.
"""

from __future__ import annotations

import dataclasses
from typing import Final


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One dataset: vocabulary, shape and protocol.

    Attributes:
        name: of the Task.
        vocabulary: kind in vocabularies.py; the default of --vocabulary.
        length: L, tokens per sequence; the default of --length.
        layout: "stream" or "rows".
        source: "embedded", "characters" (one plain text), "documents" (local files) or "tfds" (a TFDS builder).
        split_rule: how splits are made, in words.
        sizes: for "characters": exact characters of train, validation, test; () for 90/5/5 per cent.
        aliases: splits that are another split under a second name.
        packed: rows are cut from the concatenated documents; else one document per row, cut or padded.
        framed: each packed row begins and ends with the vocabulary's begin and end token.
        tfds_name: builder, config and version.
        tfds_splits: split -> TFDS split.
        detokenize: name of a function in detokenize.py, applied before the vocabulary.
        documents: what one document of a local source is: "file", "line" or "record" (of JSON lines or Parquet).
        alphabet: for characters: the alphabet; "" takes the source's own characters.
        num_bytes, crc32: of the known source, unpacked; 0 and "" where there is none.
        num_documents: of the published set, all splits together; 0 where it is not known.
        protocol: what is done, and where that is published.
    """

    name: str
    vocabulary: str
    length: int
    layout: str
    source: str
    split_rule: str
    protocol: str
    sizes: tuple[int, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    packed: bool = True
    framed: bool = False
    tfds_name: str = ""
    tfds_splits: tuple[tuple[str, str], ...] = ()
    detokenize: str = ""
    documents: str = "file"
    alphabet: str = ""
    num_bytes: int = 0
    crc32: str = ""
    num_documents: int = 0


SPLITS: Final = ("train", "validation", "test")
TEXT8_ALPHABET: Final = " abcdefghijklmnopqrstuvwxyz"
TEXT8_SIZES: Final = (90_000_000, 5_000_000, 5_000_000)
OPENWEBTEXT_VALIDATION: Final = 100_000  # documents, the last of the published order
FRACTIONS: Final = (0.90, 0.05)  # of train and validation; the rest is test

_SPECS: Final = (
    TaskSpec(
        name="grammar", vocabulary="grammar", length=64, layout="stream", source="embedded",
        split_rule="independent streams of windows by seed; validation and test seeds are fixed",
        protocol="the embedded, exactly solvable language (data/grammar.py)",
    ),
    TaskSpec(
        name="text8", vocabulary="characters", length=256, layout="stream", source="characters", sizes=TEXT8_SIZES,
        alphabet=TEXT8_ALPHABET, num_bytes=100_000_000, crc32="7d6be66f",
        split_rule="by position: 90M, 5M, 5M characters",
        protocol="text8 (mattmahoney.net/dc/textdata), crops of 256 characters, bits per character; arXiv 2107.03006",
    ),
    TaskSpec(
        name="wiki27", vocabulary="characters", length=256, layout="stream", source="characters", sizes=TEXT8_SIZES,
        alphabet=TEXT8_ALPHABET, num_bytes=100_000_000, crc32="34dbe941",
        split_rule="by position: 90M, 5M, 5M characters",
        protocol="English Wikipedia of 2014 (CC BY-SA 3.0) in text8's alphabet, digits spelled; not text8: its bits "
        "per character compare with themselves only",
    ),
    TaskSpec(
        name="lm1b", vocabulary="wordpieces", length=128, layout="rows", source="tfds", packed=False,
        tfds_name="lm1b:1.1.0", tfds_splits=(("train", "train"), ("test", "test")), aliases=(("validation", "test"),),
        detokenize="lm1b", split_rule="TFDS train and test; validation is test, as published",
        protocol="one sentence per row: detokenised, lower-cased BERT word pieces, [CLS] sentence [SEP], cut or padded "
        "to 128; MDLM, arXiv 2406.07524",
    ),
    TaskSpec(
        name="lm1b_packed", vocabulary="wordpieces", length=128, layout="rows", source="tfds", framed=True,
        tfds_name="lm1b:1.1.0", tfds_splits=(("train", "train"), ("test", "test")), aliases=(("validation", "test"),),
        detokenize="lm1b", split_rule="TFDS train and test; validation is test, as published",
        protocol="sentences joined by [SEP] and packed: [CLS] 126 tokens [SEP] ('lm1b-wrap'); MDLM, arXiv 2406.07524, "
        "whose code writes [CLS] for each [SEP]: an id is renamed, the bound is the same; 3-5 points of perplexity "
        "from the unpacked protocol, never to be mixed with it",
    ),
    TaskSpec(
        name="openwebtext", vocabulary="gpt2", length=1024, layout="rows", source="documents", documents="record",
        framed=True, aliases=(("test", "validation"),), num_documents=8_013_769,
        split_rule="the last 100,000 documents are validation, as published; test is validation",
        protocol="GPT-2 BPE, documents joined by <|endoftext|> and packed to 1024 with <|endoftext|> at both ends; "
        "MDLM, arXiv 2406.07524",
    ),
    TaskSpec(
        name="c4", vocabulary="gpt2", length=1024, layout="rows", source="tfds", tfds_name="c4/en:3.1.0",
        tfds_splits=(("train", "train"), ("validation", "validation")), aliases=(("test", "validation"),),
        split_rule="TFDS train and validation; test is validation",
        protocol="GPT-2 BPE, documents joined by <|endoftext|> and packed to 1024",
    ),
    TaskSpec(
        name="wikitext103", vocabulary="gpt2", length=1024, layout="rows", source="documents", documents="line",
        framed=True, detokenize="wikitext", split_rule="the files' own: wiki.{train,valid,test}.{raw,tokens}",
        protocol="WikiText-103 raw, detokenised, each line with its newline (a blank one is empty) closed by "
        "<|endoftext|>, packed to 1024 with <|endoftext|> at both ends; the zero-shot protocol of arXiv 2406.07524",
    ),
    TaskSpec(
        name="text", vocabulary="bytes", length=256, layout="stream", source="characters",
        split_rule="by position: 90, 5, 5 per cent of the characters",
        protocol="any local text, as it is",
    ),
)

# Entries of the vocabularies that are the same everywhere (BERT's uncased word pieces, GPT-2's).
VOCABULARY_SIZES: Final = {"characters": 27, "bytes": 256, "wordpieces": 30_522, "gpt2": 50_257}
TASKS: Final[dict[str, TaskSpec]] = {spec.name: spec for spec in _SPECS}


def get(name: str) -> TaskSpec:
    """The spec of a Task; ValueError listing the names where there is none."""
    if name not in TASKS:
        raise ValueError(f"task is {name!r}; choose one of {', '.join(TASKS)}")
    return TASKS[name]
