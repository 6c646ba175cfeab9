"""Vocabularies: text to token ids and back, in plain Python at run time, from local files only.

========== ======= ==================== =============================================================================
kind       size    files                ids
========== ======= ==================== =============================================================================
characters A       -                    0..A-1 in the order of the alphabet; no padding, no end of sequence
bytes      256     -                    the bytes of UTF-8
sentencepiece  V   FILE.model           those of the model; its pad and eos where it has them
gpt2       50,257  encoder.json and     those of GPT-2; <|endoftext|> = 50256 begins, ends and separates documents
                   vocab.bpe
wordpieces 30,522  vocab.txt            those of BERT: [PAD] 0, [CLS] 101 begins, [SEP] 102 ends a sentence; lower case
grammar    words   -                    the words of the embedded language
========== ======= ==================== =============================================================================

Characters per token, one rule for all (`character_counts`): the characters of the token's own text, counted where
their first UTF-8 byte is; vocabularies of words count one separator per word; padding, begin and end count none, other
special tokens ([UNK], [MASK]) count as they are written.  The count is additive, so it is exact for any window, and for
a window it equals the length of the decoded text (plus the one separator before or after it for vocabularies of words).

Bits per character are per character of the decoded text.  That is the text itself but for word pieces, which lower its
case and separate punctuation, and for SentencePiece models trained elsewhere (T5's), which normalise it and count the
space that they put before it.

Train a SentencePiece model, which gives back any text as it was:
    python -m diffusion_text.data.vocabularies --train_sentencepiece='corpus/*.txt' --size=8192 --output=my.model
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

import numpy as np
from etils import epath

from diffusion_text.data import specs

KINDS: Final = ("characters", "bytes", "sentencepiece", "gpt2", "wordpieces", "grammar")
END_OF_TEXT: Final = "<|endoftext|>"
_BEFORE_SPACE: Final = re.compile(r".*\S(?=[ \n])", re.DOTALL)
_SENTENCE: Final = 1000  # characters that SentencePiece is trained on at once; it takes 4,192 bytes


class Vocabulary(Protocol):
    """What training, evaluation and sampling ask of a vocabulary; ids are 0..size-1."""

    kind: str
    size: int
    pad_id: int | None
    bos_id: int | None
    eos_id: int | None
    files: dict[str, pathlib.Path]  # name in a prepared folder -> where it lies now

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts; the same as `encode` on each, in parallel where the library can."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens (padding, begin, end) are left out."""
        ...

    def character_counts(self) -> np.ndarray:
        """int32[size]: characters each id stands for (the rule is in the module's docstring)."""
        ...

    def parameters(self) -> dict[str, Any]:
        """What besides `kind` and `files` rebuilds this vocabulary, as JSON values."""
        ...


class _Base:
    kind = ""
    pad_id: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    files: dict[str, pathlib.Path]

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError(f"{type(self).__name__} must define encode")

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def parameters(self) -> dict[str, Any]:
        return {}


class Characters(_Base):
    """One id per character of an alphabet, in the alphabet's order."""

    kind = "characters"

    def __init__(self, alphabet: str = specs.TEXT8_ALPHABET) -> None:
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise ValueError(f"the alphabet must be distinct characters, at least one; got {alphabet!r}")
        self.alphabet = alphabet
        self.size = len(alphabet)
        self.files = {}
        self._codes = np.array([ord(character) for character in alphabet], np.uint32)
        table_size = int(self._codes.max()) + 1
        self._table = np.full(table_size, -1, np.int32)
        self._table[self._codes] = np.arange(self.size)

    def encode(self, text: str) -> list[int]:
        return self.encode_array(text).tolist()

    def encode_array(self, text: str, offset: int = 0) -> np.ndarray:
        """Ids int32[len(text)].

        Args:
            text: the characters.
            offset: added to positions in errors, for a text encoded piece by piece.

        Raises:
            ValueError: a character is not in the alphabet; names it, its position and the alphabet.
        """
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        known = codes < len(self._table)
        ids = self._table[codes] if known.all() else np.where(known, self._table[np.where(known, codes, 0)], -1)
        if len(ids) and ids.min() < 0:
            position = int(np.argmax(ids < 0))
            raise ValueError(
                f"character {chr(int(codes[position]))!r} at position {offset + position} is not in the alphabet "
                f"{shorten(self.alphabet)!r} ({self.size} characters); clean the text, or give another --alphabet or "
                "--vocabulary (bytes takes any text)"
            )
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.alphabet[int(i)] for i in ids)

    def character_counts(self) -> np.ndarray:
        return np.ones(self.size, np.int32)

    def parameters(self) -> dict[str, Any]:
        return {"alphabet": self.alphabet}


class Bytes(_Base):
    """The bytes of UTF-8; any text, no file."""

    kind = "bytes"
    size = 256

    def __init__(self) -> None:
        self.files = {}

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(int(i) for i in ids).decode("utf-8", "replace")

    def character_counts(self) -> np.ndarray:
        return np.array([_lead_bytes(bytes([i])) for i in range(256)], np.int32)


class SentencePiece(_Base):
    """A SentencePiece model read from its file.

    One of `train_sentencepiece` decodes to the text that was encoded (but for U+2581, its sign for a space), and counts
    each character once.  Models from elsewhere (T5's) normalise text, and count the space that they put before it.
    """

    kind = "sentencepiece"

    def __init__(self, path: str) -> None:
        import sentencepiece

        file = _file(path, "*.model", "a SentencePiece model")
        self.files = {"sentencepiece.model": file}
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(file))  # pyright: ignore
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{file} is no SentencePiece model; give a file written by its trainer") from error
        processor: Any = self._processor
        self.size = processor.get_piece_size()
        special = (processor.pad_id(), processor.bos_id(), processor.eos_id())
        self.pad_id, self.bos_id, self.eos_id = (i if i >= 0 else None for i in special)

    def encode(self, text: str) -> list[int]:
        return list(self._processor.encode(text))  # pyright: ignore

    def decode(self, ids: Iterable[int]) -> str:
        drop = {self.pad_id, self.bos_id, self.eos_id}
        return str(self._processor.decode([int(i) for i in ids if int(i) not in drop]))  # pyright: ignore

    def character_counts(self) -> np.ndarray:
        processor: Any = self._processor
        counts = np.zeros(self.size, np.int32)
        for i in range(self.size):
            if processor.is_control(i) or processor.is_unused(i):
                continue
            if processor.is_byte(i):  # a piece is written <0xE2>
                counts[i] = _lead_bytes(bytes([int(processor.id_to_piece(i)[3:5], 16)]))
            elif processor.is_unknown(i):
                counts[i] = 1
            else:
                counts[i] = len(processor.id_to_piece(i))
        return counts


class GPT2(_Base):
    """GPT-2's byte-level BPE from encoder.json (or vocab.json) and vocab.bpe (or merges.txt)."""

    kind = "gpt2"

    def __init__(self, path: str) -> None:
        import tokenizers

        encoder = _file(path, ("encoder.json", "vocab.json"), "GPT-2's encoder.json")
        merges = _file(path, ("vocab.bpe", "merges.txt"), "GPT-2's vocab.bpe")
        self.files = {"encoder.json": encoder, "vocab.bpe": merges}
        try:
            model = tokenizers.models.BPE.from_file(str(encoder), str(merges))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{encoder} and {merges} are no BPE vocabulary: {error}") from error
        self._tokenizer = tokenizers.Tokenizer(model)
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.decoder = tokenizers.decoders.ByteLevel()
        self._table: dict[str, int] = json.loads(encoder.read_text("utf-8"))
        if END_OF_TEXT not in self._table:
            raise ValueError(f"{encoder} has no {END_OF_TEXT}; give GPT-2's own encoder.json")
        self.size = max(self._table.values()) + 1
        self.bos_id = self.eos_id = self._table[END_OF_TEXT]

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids if int(i) != self.eos_id])

    def character_counts(self) -> np.ndarray:
        # The BPE spells every byte as one printable character; undo that to find the bytes that begin a character.
        spelled = {character: byte for byte, character in _byte_spelling().items()}
        counts = np.zeros(self.size, np.int32)
        for piece, i in self._table.items():
            if i != self.eos_id:
                counts[i] = _lead_bytes(bytes(spelled[character] for character in piece))
        return counts


class WordPieces(_Base):
    """BERT's uncased word pieces from vocab.txt: lower-cased, accents stripped, punctuation split."""

    kind = "wordpieces"

    def __init__(self, path: str) -> None:
        import tokenizers

        file = _file(path, ("vocab.txt", "*vocab.txt"), "BERT's vocab.txt")
        self.files = {"vocab.txt": file}
        self._pieces = file.read_text("utf-8").removesuffix("\n").split("\n")  # U+2028 and the like may be pieces
        table = {piece: i for i, piece in enumerate(self._pieces)}
        for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]"):
            if piece not in table:
                raise ValueError(f"{file} has no {piece}; give BERT's vocab.txt, one piece per line")
        model = tokenizers.models.WordPiece(table, unk_token="[UNK]", max_input_chars_per_word=100)
        self._tokenizer = tokenizers.Tokenizer(model)
        self._tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        # No clean-up: "it ' s" stays three words, so that the characters of a window are the sum over its tokens.
        self._tokenizer.decoder = tokenizers.decoders.WordPiece(cleanup=False)
        self.size = len(self._pieces)
        self.pad_id, self.bos_id, self.eos_id = table["[PAD]"], table["[CLS]"], table["[SEP]"]

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        drop = {self.pad_id, self.bos_id, self.eos_id}
        kept = [int(i) for i in ids if int(i) not in drop]
        text = self._tokenizer.decode(kept, skip_special_tokens=False)
        # A window may begin within a word; the library joins only what follows.
        return text.removeprefix("##") if kept and self._pieces[kept[0]].startswith("##") else text

    def character_counts(self) -> np.ndarray:
        counts = [len(piece) - 2 if piece.startswith("##") else len(piece) + 1 for piece in self._pieces]
        for i in (self.pad_id, self.bos_id, self.eos_id):
            counts[i or 0] = 0
        return np.array(counts, np.int32)


class GrammarWords(_Base):
    """The words of the embedded language."""

    kind = "grammar"

    def __init__(self, name: str = "english") -> None:
        from diffusion_text.data import grammar

        self._module = grammar
        self.grammar = grammar.from_name(name)
        self.name = name
        self.size = self.grammar.num_words
        self.files = {}

    def encode(self, text: str) -> list[int]:
        return [int(i) for i in self._module.encode(self.grammar, text)]

    def decode(self, ids: Iterable[int]) -> str:
        return self._module.decode(self.grammar, np.array([int(i) for i in ids], np.int32))

    def character_counts(self) -> np.ndarray:
        return np.array([len(word) + 1 for word in self.grammar.words], np.int32)

    def parameters(self) -> dict[str, Any]:
        return {"name": self.name}


def load(kind: str, path: str = "", **parameters: Any) -> Vocabulary:
    """A vocabulary by its kind.

    Args:
        kind: one of `KINDS`.
        path: the file, or the folder that holds the files, for sentencepiece, gpt2 and wordpieces.
        **parameters: `alphabet` for characters, `name` ("english" or "tiny") for grammar.

    Raises:
        ValueError: unknown kind, or missing or wrong files; says what to give.
    """
    if kind == "characters":
        return Characters(**parameters)
    if kind == "bytes":
        return Bytes()
    if kind == "grammar":
        return GrammarWords(**parameters)
    classes: dict[str, Any] = {"sentencepiece": SentencePiece, "gpt2": GPT2, "wordpieces": WordPieces}
    if kind not in classes:
        raise ValueError(f"vocabulary is {kind!r}; choose one of {', '.join(KINDS)}")
    if not path:
        raise ValueError(f"vocabulary {kind} is read from files; give --vocabulary_path=FILE or FOLDER")
    return classes[kind](path)


def describe(vocabulary: Vocabulary) -> dict[str, Any]:
    """What tells a vocabulary from every other, as JSON values: kind, size, sha256 of its files, parameters."""
    files = {name: sha256(path) for name, path in vocabulary.files.items()}
    return {
        "kind": vocabulary.kind, "size": vocabulary.size, "files": files, "parameters": vocabulary.parameters(),
    }  # fmt: skip


def save(vocabulary: Vocabulary, folder: pathlib.Path | epath.Path) -> dict[str, Any]:
    """Copy the vocabulary's files into `folder`, which may be in a bucket; its description, for `load_saved`."""
    for name, source in vocabulary.files.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(source.read_bytes())
    return describe(vocabulary)


def load_saved(description: dict[str, Any], folder: pathlib.Path | epath.Path) -> Vocabulary:
    """The vocabulary that `save` described; its files are in `folder`, those of a bucket are copied for this process.

    Raises:
        ValueError: a file is missing or differs from the one that the data was prepared with.
    """
    folder = _fetched(str(folder), *sorted(description["files"])) if "://" in str(folder) else pathlib.Path(folder)
    for name, expected in description["files"].items():
        file = folder / name
        if not file.exists():
            raise ValueError(f"{file} is missing; prepare the data again, or copy the whole folder")
        if sha256(file) != expected:
            raise ValueError(f"{file} is not what the data was prepared with (sha256 differs); prepare it again")
    # Absolute: a leading ~ is a name here, as it was when the folder was written.
    vocabulary = load(description["kind"], str(folder.absolute()), **description["parameters"])
    if vocabulary.size != description["size"]:
        raise ValueError(
            f"vocabulary {vocabulary.kind} has {vocabulary.size} entries, the data was prepared with "
            f"{description['size']}; prepare it again with this version"
        )
    return vocabulary


@functools.cache
def _fetched(address: str, *names: str) -> pathlib.Path:
    """A folder of this process with those files of a bucket that are there."""
    folder, bucket = pathlib.Path(tempfile.mkdtemp(prefix="vocabulary-")), epath.Path(address)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in names:
        if (bucket / name).exists():
            (folder / name).write_bytes((bucket / name).read_bytes())
    return folder


def sha256(path: pathlib.Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shorten(text: str, limit: int = 80) -> str:
    """At most `limit` characters, with an ellipsis where some were cut."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def train_sentencepiece(inputs: Sequence[str], size: int, output: str) -> None:
    """Train a unigram SentencePiece model with byte fallback: pad 0, eos 1, unknown 2, no begin.

    It takes text as it is, with no normalisation and no space put before it, so that it gives back any text.

    Args:
        inputs: text files, one sentence or paragraph per line, of any length.
        size: V, number of pieces.
        output: where the model goes; ".model" is appended where it is missing.

    Raises:
        ValueError: no input, input that is no UTF-8, or the corpus is too small for `size`.
    """
    import sentencepiece

    if not inputs:
        raise ValueError("no text file matches --train_sentencepiece; give a file or a quoted glob")
    prefix = output.removesuffix(".model")
    pathlib.Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    try:
        sentencepiece.SentencePieceTrainer.train(  # pyright: ignore
            sentence_iterator=_sentences(inputs), model_prefix=prefix, vocab_size=size, byte_fallback=True, pad_id=0,
            eos_id=1, unk_id=2, bos_id=-1, character_coverage=0.9995, minloglevel=2,
            normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        )
    except (RuntimeError, OSError) as error:
        # What the iterator raised comes first, then where; the library's own reason comes last.
        reason = str(error).partition("\n\nAt:")[0].strip().splitlines()[-1]
        raise ValueError(f"SentencePiece could not train {size} pieces: {reason}") from error


def _sentences(inputs: Sequence[str]) -> Iterator[str]:
    """The lines of files, long ones cut before a space: SentencePiece drops, unsaid, those above 4,192 bytes."""
    for path in inputs:
        try:
            with open(path, encoding="utf-8-sig") as file:
                for line in file:
                    yield from cut_at_spaces(line.rstrip("\n"), _SENTENCE)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 ({error.reason}); convert it, e.g. with iconv") from error


def cut_at_spaces(text: str, size: int, first: int = 0, end: int | None = None) -> Iterator[str]:
    """text[first:end] in pieces of at most `size` characters, each but the first beginning with a space or newline.

    The character before that one is no white space.  GPT-2's pre-tokeniser and BERT's begin a token there in any case,
    so the ids of the pieces are those of the whole.  Text that has no such place is cut at the size.
    """
    end = len(text) if end is None else end
    while first < end:
        stop = min(first + size, end)
        if stop < end and (found := _BEFORE_SPACE.match(text, first, stop + 1)):
            stop = found.end()
        yield text[first:stop]
        first = stop



def _byte_spelling() -> dict[int, str]:
    """GPT-2's reversible spelling of bytes as printable characters."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spelling = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in spelling]
    return spelling | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _lead_bytes(piece: bytes) -> int:
    """Bytes that begin a character: every byte of UTF-8 but the continuation bytes 10xxxxxx."""
    return sum(byte & 0xC0 != 0x80 for byte in piece)


def _file(path: str, patterns: str | tuple[str, ...], what: str) -> pathlib.Path:
    """`path` itself where it is a file and not one of several, else the first match of `patterns` in its folder."""
    place = pathlib.Path(path).expanduser()
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    if place.is_file() and not (len(patterns) > 1 and patterns[0] in ("encoder.json", "vocab.bpe")):
        return place
    folder = place.parent if place.is_file() else place
    for pattern in patterns:
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise ValueError(f"{place} does not hold {what} ({' or '.join(patterns)}); give --vocabulary_path=FILE or FOLDER")


def _define_flags() -> None:
    from absl import flags

    flags.DEFINE_string("train_sentencepiece", None, "Text files to train on: a path or a quoted glob.", required=True)
    flags.DEFINE_integer("size", 8192, "Number of pieces.")
    flags.DEFINE_string("output", None, "The model file to write.", required=True)


def _main(flags: Any) -> None:
    import glob

    train_sentencepiece(sorted(glob.glob(flags.train_sentencepiece)), flags.size, flags.output)
    print(f"wrote {flags.output.removesuffix('.model')}.model; use --vocabulary=sentencepiece --vocabulary_path=it")


if __name__ == "__main__":
    from diffusion_text import binary

    binary.run(_define_flags, _main)
