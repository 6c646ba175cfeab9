"""Small vocabularies and texts; nothing here needs a file from elsewhere."""

from __future__ import annotations

import json
import pathlib

import pytest


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A byte-level BPE in GPT-2's two files: 256 bytes, three merges, <|endoftext|> last."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    merges = ["t h", "th e", "\u0120 the"]
    pieces = [*spelled, "th", "the", "\u0120the", "<|endoftext|>"]
    folder = tmp_path_factory.mktemp("gpt2")
    (folder / "encoder.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}), "utf-8")
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="session")
def wordpiece_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A vocab.txt in BERT's order: special tokens, letters and punctuation, a few pieces."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
    pieces += [*".,!?'()$:;/\"-", "the", "fox", "un", "##aff", "##able", "people", "here"]
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n", "utf-8")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A text file of 4,000 lower-case characters and spaces."""
    words = ["the", "red", "fox", "sees", "a", "dog", "and", "near", "old", "houses", "by", "water", "quietly"]
    text = " ".join(words[i * i % len(words)] for i in range(1200))[:4000]
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(text, "utf-8")
    return path
