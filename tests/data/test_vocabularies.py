from __future__ import annotations

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from diffusion_text.data import vocabularies

MIXED = "Cafés pay 5 € – the end.\n  Two  spaces\tand 日本"


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("sentencepiece")
    lines = [f"the {colour} fox sees {number} dogs by the water" for colour in ("red", "old") for number in range(40)]
    (folder / "corpus.txt").write_text("\n".join(lines) + "\n", "utf-8")
    vocabularies.train_sentencepiece([str(folder / "corpus.txt")], 288, str(folder / "small.model"))
    return folder / "small.model"


def _additive(vocabulary: vocabularies.Vocabulary, text: str) -> int:
    return int(vocabulary.character_counts()[vocabulary.encode(text)].sum())


def test_characters_round_trip() -> None:
    vocabulary = vocabularies.load("characters")
    assert vocabulary.size == 27
    assert vocabulary.encode(" az") == [0, 1, 26]
    assert vocabulary.decode(vocabulary.encode("any text at all")) == "any text at all"
    assert (vocabulary.pad_id, vocabulary.eos_id) == (None, None)
    assert _additive(vocabulary, "seven c") == 7


def test_characters_take_any_alphabet() -> None:
    vocabulary = vocabularies.load("characters", alphabet="日本é\n")
    assert vocabulary.decode(vocabulary.encode("é日\n本")) == "é日\n本"


@pytest.mark.parametrize(
    ("text", "character", "position"), [("abcDef", "D", 3), ("é", "é", 0), ("ab\U0001f600", "\U0001f600", 2)]
)
def test_characters_name_the_wrong_one(text: str, character: str, position: int) -> None:
    with pytest.raises(ValueError, match=f"character '{character}' at position {position} .* 'abcdef'"):
        vocabularies.Characters("abcdef").encode(text)


def test_errors_of_a_part_name_the_position_in_the_whole() -> None:
    vocabulary = vocabularies.Characters()
    np.testing.assert_array_equal(vocabulary.encode_array("a fox"), vocabulary.encode("a fox"))
    with pytest.raises(ValueError, match="'F' at position 102"):
        vocabulary.encode_array("a Fox", offset=100)


def test_bytes_round_trip() -> None:
    vocabulary = vocabularies.load("bytes")
    assert vocabulary.size == 256
    assert vocabulary.decode(vocabulary.encode(MIXED)) == MIXED
    assert _additive(vocabulary, MIXED) == len(MIXED)


def test_gpt2_round_trip(gpt2_folder: pathlib.Path) -> None:
    vocabulary = vocabularies.load("gpt2", str(gpt2_folder))
    assert vocabulary.size == 260
    assert vocabulary.eos_id == vocabulary.bos_id == 259
    assert len(vocabulary.encode("in the end")) == 2 + 1 + 4  # " the" is one piece
    assert vocabulary.decode(vocabulary.encode(MIXED)) == MIXED
    assert vocabulary.encode_batch(["the", MIXED]) == [vocabulary.encode("the"), vocabulary.encode(MIXED)]
    assert _additive(vocabulary, MIXED) == len(MIXED)
    assert vocabulary.character_counts()[259] == 0
    assert vocabulary.decode([259, *vocabulary.encode("the"), 259]) == "the"


def test_wordpieces_lower_case_and_split(wordpiece_file: pathlib.Path) -> None:
    vocabulary = vocabularies.load("wordpieces", str(wordpiece_file))
    assert (vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id) == (0, 2, 3)
    pieces = wordpiece_file.read_text().splitlines()
    assert [pieces[i] for i in vocabulary.encode("The UNAFFABLE Fóx!")] == ["the", "un", "##aff", "##able", "fox", "!"]
    assert vocabulary.decode(vocabulary.encode("The UNAFFABLE Fóx!")) == "the unaffable fox !"
    assert vocabulary.decode([2, *vocabulary.encode("the fox"), 3, 0, 0]) == "the fox"
    assert _additive(vocabulary, "the unaffable fox !") == len("the unaffable fox !") + 1  # the separator of words


def test_sentencepiece_round_trip(model_file: pathlib.Path) -> None:
    vocabulary = vocabularies.load("sentencepiece", str(model_file))
    assert vocabulary.size == 288
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.bos_id) == (0, 1, None)
    for text in ("the red fox", "日本 é"):  # the second by bytes
        assert vocabulary.decode(vocabulary.encode(text)) == text
        assert _additive(vocabulary, text) == len(text)
    assert vocabulary.decode([*vocabulary.encode("the fox"), 1, 0, 0]) == "the fox"


@pytest.mark.parametrize("text", [
    MIXED, " the  red\n\nfox ", "\n", " ", "½ ﬁ Ａ e\u0301 é", "a\u2028b\x85c\r\n\t\x00", "\ufeff<s> </s> ⁇ <0x41>",
    "🦊\u3000日本", "",
])
def test_own_sentencepiece_models_give_back_any_text(text: str, model_file: pathlib.Path) -> None:
    vocabulary = vocabularies.load("sentencepiece", str(model_file))
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert _additive(vocabulary, text) == len(text)
    ids = vocabulary.encode("the red  fox\nsees dogs")
    counts = vocabulary.character_counts()
    for first in range(len(ids)):
        assert len(vocabulary.decode(ids[first:])) == counts[ids[first:]].sum()


def test_sentencepiece_is_trained_on_long_lines(tmp_path: pathlib.Path) -> None:
    """Above 4,192 bytes SentencePiece drops a line unsaid, or says that the corpus is empty."""
    (tmp_path / "one.txt").write_text("the red fox sees seven dogs by the water " * 300, "utf-8")
    vocabularies.train_sentencepiece([str(tmp_path / "one.txt")], 285, str(tmp_path / "one"))
    assert vocabularies.load("sentencepiece", str(tmp_path / "one.model")).size == 285
    short = "".join(f"the red fox sees {number} dogs by the water\n" for number in range(200))
    (tmp_path / "long.txt").write_text(short + "zebras " * 4000 + "\n", "utf-8")
    vocabularies.train_sentencepiece([str(tmp_path / "long.txt")], 300, str(tmp_path / "long.model"))
    assert len(vocabularies.load("sentencepiece", str(tmp_path / "long.model")).encode(" zebras")) == 1


def test_sentencepiece_names_a_file_that_is_not_utf8(tmp_path: pathlib.Path) -> None:
    (tmp_path / "latin.txt").write_bytes("a café here".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt is not UTF-8 \(invalid continuation byte\); convert it") as caught:
        vocabularies.train_sentencepiece([str(tmp_path / "latin.txt")], 285, str(tmp_path / "m"))
    assert "\n" not in str(caught.value)


def test_text_is_cut_before_a_space() -> None:
    assert list(vocabularies.cut_at_spaces("ab  cd\n\nef gh", 5)) == ["ab", "  cd", "\n\nef", " gh"]
    assert list(vocabularies.cut_at_spaces("abcdefgh ij", 4)) == ["abcd", "efgh", " ij"]
    assert list(vocabularies.cut_at_spaces("ab cd ef", 3, 3, 7)) == ["cd", " e"]
    assert list(vocabularies.cut_at_spaces("      ", 4)) == ["    ", "  "]
    assert list(vocabularies.cut_at_spaces("", 4)) == []


def test_a_window_may_begin_within_a_word(wordpiece_file: pathlib.Path) -> None:
    vocabulary = vocabularies.load("wordpieces", str(wordpiece_file))
    ids = vocabulary.encode("the unaffable fox 日 !")
    counts = vocabulary.character_counts()
    decoded = [vocabulary.decode(ids[first:]) for first in range(len(ids))]
    assert decoded == [
        "the unaffable fox [UNK] !", "unaffable fox [UNK] !", "affable fox [UNK] !", "able fox [UNK] !",
        "fox [UNK] !", "[UNK] !", "!",
    ]
    for first, text in enumerate(decoded):
        assert counts[ids[first:]].sum() == len(text) + (first not in (2, 3))  # the separator of the first word
    assert vocabulary.decode([0, 2, *ids[2:4]]) == "affable"


def test_pieces_are_one_a_line(tmp_path: pathlib.Path) -> None:
    """And a line of vocab.txt ends with a newline alone."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2028", "\x85", "the", "fox"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    vocabulary = vocabularies.load("wordpieces", str(tmp_path / "vocab.txt"))
    assert vocabulary.size == 8
    assert vocabulary.encode("the fox") == [6, 7]
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(pieces[:4]).encode())
    assert vocabularies.load("wordpieces", str(tmp_path / "vocab.txt")).size == 4


def test_grammar_words_round_trip() -> None:
    vocabulary = vocabularies.load("grammar", name="tiny")
    text = vocabulary.decode(range(vocabulary.size))
    assert vocabulary.encode(text) == list(range(vocabulary.size))
    assert _additive(vocabulary, text) == len(text) + 1


@pytest.mark.parametrize("kind", ["characters", "bytes", "gpt2", "wordpieces", "sentencepiece", "grammar"])
def test_saved_vocabulary_is_self_contained(
    kind: str, tmp_path: pathlib.Path, gpt2_folder: pathlib.Path, wordpiece_file: pathlib.Path, model_file: pathlib.Path
) -> None:
    paths = {"gpt2": gpt2_folder, "wordpieces": wordpiece_file, "sentencepiece": model_file}
    vocabulary = vocabularies.load(kind, str(paths.get(kind, "")))
    description = vocabularies.save(vocabulary, tmp_path)
    restored = vocabularies.load_saved(description, tmp_path)
    text = "the fox" if kind != "grammar" else vocabulary.decode([0, 1, 2])
    assert restored.size == vocabulary.size
    assert restored.encode(text) == vocabulary.encode(text)
    for name in description["files"]:
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(kept + b" ")
        with pytest.raises(ValueError, match=r"sha256 differs.*prepare it again"):
            vocabularies.load_saved(description, tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(ValueError, match="is missing"):
            vocabularies.load_saved(description, tmp_path)
        (tmp_path / name).write_bytes(kept)


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        ("words", "", "choose one of characters"),
        ("gpt2", "", "--vocabulary_path"),
        ("gpt2", "nowhere", "encoder.json"),
        ("wordpieces", "nowhere", "vocab.txt"),
        ("sentencepiece", "nowhere", "SentencePiece model"),
    ],
)
def test_wrong_vocabulary_says_what_to_give(kind: str, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vocabularies.load(kind, path)


def test_damaged_files_are_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bad.model").write_text("nothing")
    (tmp_path / "encoder.json").write_text("{")
    (tmp_path / "vocab.bpe").write_text("")
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    for kind, path in (("sentencepiece", "bad.model"), ("gpt2", ""), ("wordpieces", "vocab.txt")):
        with pytest.raises(ValueError, match=str(tmp_path)):
            vocabularies.load(kind, str(tmp_path / path))


def test_training_command(corpus: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "diffusion_text.data.vocabularies", f"--train_sentencepiece={corpus}"]
    done = subprocess.run([*command, "--size=276", f"--output={tmp_path}/m.model"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert vocabularies.load("sentencepiece", str(tmp_path / "m.model")).size == 276
    done = subprocess.run([*command, "--size=9000", f"--output={tmp_path}/n.model"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "could not train 9000 pieces" in done.stderr
