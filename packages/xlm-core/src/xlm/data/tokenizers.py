"""Tokenizers: byte, character, word and byte-level BPE, trained locally, and pretrained ones from a folder or the Hub.

Every factory's ``build(texts)`` gives a ``PreTrainedTokenizerFast`` with pad, mask, bos and eos. Control tokens come
after the vocabulary, so they are ids that no text can have: "[MASK]" typed by a user is plain text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Protocol, runtime_checkable

from tokenizers import AddedToken, Encoding, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from xlm.errors import UserError

CONTROL = {"pad_token": "[PAD]", "mask_token": "[MASK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
OWN_ID = ("pad_token", "mask_token")  # bos and eos may be one token, as GPT-2 has it
UNKNOWN = "[UNK]"
PROBE = " Ab1  c\t-\r\n'e\u0301éßﬁ\0\U0001f600. ,!"
"""Case, spaces, line ends, accents composed and not, a ligature, NUL, an emoji: what lossy tokenizers lose."""

HUB_FILES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
]
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}")

logger = logging.getLogger(__name__)


@runtime_checkable
class TokenizerFactory(Protocol):
    """What ``DataModule.prepare`` takes: a description of a tokenizer that may need training."""

    trained: bool
    """Whether ``build`` reads its texts; then the result is cached under them."""

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Make the tokenizer, from the training texts where it is trained."""
        ...


class ByteTokenizer:
    """One token a UTF-8 byte, id = byte value. Lossless, needs no training."""

    trained = False

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Ignores ``texts``."""
        backend = Tokenizer(models.BPE(vocab={symbol: byte for byte, symbol in enumerate(_byte_symbols())}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        return _with_control_tokens(backend)


class CharTokenizer:
    """One token a code point of the training texts, most frequent first; others become [UNK], and are counted."""

    trained = True

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Collect the characters of ``texts``."""
        return _word_level(texts, pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse(), vocab_size=None)


class WordTokenizer:
    """One token a word between spaces, most frequent first. Lossy: every run of white space decodes to one space.

    Args:
        vocab_size: Number of ids, control tokens included; rarer words become [UNK]. None keeps every word.
    """

    trained = True

    def __init__(self, *, vocab_size: int | None = None) -> None:
        _check_vocab_size(vocab_size, at_least=len(CONTROL) + 2)
        self.vocab_size = vocab_size

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Collect the words of ``texts``."""
        return _word_level(texts, pre_tokenizers.WhitespaceSplit(), None, vocab_size=self.vocab_size)


class BPETokenizer:
    """Byte-level byte-pair encoding (Radford et al., 2019), trained on the training texts. Lossless.

    Args:
        vocab_size: Number of ids, the 256 bytes and the control tokens included; short texts may give fewer.
    """

    trained = True

    def __init__(self, *, vocab_size: int = 4096) -> None:
        _check_vocab_size(vocab_size, at_least=256 + len(CONTROL))
        self.vocab_size = vocab_size

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Learn the merges from ``texts``."""
        backend = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size - len(CONTROL), initial_alphabet=_byte_symbols(), show_progress=False
        )
        backend.train_from_iterator(texts, trainer)
        return _with_control_tokens(backend)


class PretrainedTokenizer:
    """A tokenizer from a folder or, by name, from the Hugging Face Hub. Only data files are read, never code.

    Args:
        name: A folder that holds tokenizer.json, or vocab.json and merges.txt (GPT-2), or vocab.txt (BERT); otherwise
            a Hub name.
        revision: Commit, tag or branch on the Hub.
        add_missing: Append control tokens that it lacks as new ids; false makes a missing one an error.
    """

    trained = False

    def __init__(self, *, name: str, revision: str | None = None, add_missing: bool = True) -> None:
        self.name, self.revision, self.add_missing = name, revision, add_missing

    def build(self, texts: Iterable[str]) -> PreTrainedTokenizerFast:
        """Ignores ``texts``."""
        folder = Path(self.name).expanduser()
        tokenizer = load(folder if folder.is_dir() else _from_hub(self.name, self.revision))
        tokenizer.name_or_path = self.name
        return complete(tokenizer, add_missing=self.add_missing)


def load(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder: a run's ``tokenizer/``, or one in the formats of GPT-2 and BERT."""
    folder = Path(folder)
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    try:
        if "tokenizer.json" in present:
            return plain(PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True))
        if {"vocab.json", "merges.txt"} <= present:
            return _gpt2(folder)
        if "vocab.txt" in present:
            return _bert(folder / "vocab.txt")
    except Exception as error:  # the backend raises plain Exception for a damaged file
        raise UserError(
            f"cannot be read: {error}", where="tokenizer.name", value=folder, fix="copy the folder again"
        ) from error
    raise UserError(
        f"holds no tokenizer, only {sorted(present) or 'nothing'}",
        where="tokenizer.name",
        value=folder,
        fix="put tokenizer.json there, or vocab.json and merges.txt, or vocab.txt",
    )


def plain(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Make ``tokenizer`` treat its input as plain text: no control tokens parsed, nothing cut, filled or tidied up."""
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = True
    tokenizer.clean_up_tokenization_spaces = tokenizer.init_kwargs["clean_up_tokenization_spaces"] = False
    tokenizer.backend_tokenizer.encode_special_tokens = True
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def complete(tokenizer: PreTrainedTokenizerFast, *, add_missing: bool) -> PreTrainedTokenizerFast:
    """Append, or miss, control tokens that are absent, and pad or mask where it shares its id with another one."""
    ids = {token: getattr(tokenizer, f"{token}_id") for token in [*CONTROL, "unk_token"]}
    shared = [id_ for id_ in ids.values() if list(ids.values()).count(id_) > 1]
    missing = [token for token in CONTROL if ids[token] is None or (token in OWN_ID and ids[token] in shared)]
    if missing and not add_missing:
        raise UserError(
            f"has no {' and no '.join(missing)} of its own",
            where="tokenizer.name",
            value=tokenizer.name_or_path or None,
            fix="set tokenizer.add_missing=true to append them as new ids, or take another tokenizer",
        )
    if missing:
        tokenizer.add_special_tokens({token: CONTROL[token] for token in missing})
        added = ", ".join(f"{CONTROL[token]} = {getattr(tokenizer, token + '_id')}" for token in missing)
        logger.warning("tokenizer %s lacks control tokens; appended as new ids: %s", tokenizer.name_or_path, added)
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[Encoding]:
    """Ids and character offsets of plain texts; nothing is added and no control token is recognised."""
    try:
        encodings: list[Encoding] = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    except TypeError as error:  # what the backend makes of half a surrogate pair
        broken = [ascii(text) for text in texts if any("\ud800" <= letter <= "\udfff" for letter in text)]
        raise UserError("is no Unicode text", value=", ".join(broken), fix="remove the lone surrogates") from error
    return encodings


def is_lossless(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether decoding gives back the text, tried on ``PROBE`` without the characters that are unknown.

    Where it is false, bits per byte have no meaning.
    """
    known = [letter for letter in PROBE if tokenizer.unk_token_id not in encode(tokenizer, [letter])[0].ids]
    text = "".join(known)
    return bool(tokenizer.decode(encode(tokenizer, [text])[0].ids) == text)


def _byte_symbols() -> list[str]:
    """GPT-2's printable symbol for each byte: itself where it is printable, otherwise the next code point from 256."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    unprintable = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + unprintable.index(byte)) for byte in range(256)]


def _byte_level(model: models.Model) -> Tokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _word_level(texts: Iterable[str], split: Any, decoder: Any, *, vocab_size: int | None) -> PreTrainedTokenizerFast:
    """A vocabulary of the pieces that ``split`` makes; a piece that looks like a control token is left unknown."""
    backend = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    backend.pre_tokenizer = split
    if decoder is not None:
        backend.decoder = decoder
    size = 2**31 if vocab_size is None else vocab_size - len(CONTROL)
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=[UNKNOWN], show_progress=False)
    backend.train_from_iterator(texts, trainer)
    learnt = backend.get_vocab()
    pieces = [piece for piece in sorted(learnt, key=learnt.__getitem__) if piece not in CONTROL.values()]
    backend.model = models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=UNKNOWN)
    return _with_control_tokens(backend, unk_token=UNKNOWN)


def _with_control_tokens(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    """Append pad, mask, bos, eos, in this order, as new ids."""
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL.values()])
    return _wrap(backend, **CONTROL, **special)


def _wrap(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return plain(PreTrainedTokenizerFast(tokenizer_object=backend, **special))  # type: ignore[no-untyped-call]


def _check_vocab_size(vocab_size: int | None, *, at_least: int) -> None:
    if vocab_size is not None and vocab_size < at_least:
        fix = f"use {at_least} or more: the smallest vocabulary and {len(CONTROL)} control tokens"
        raise UserError("is too small", where="tokenizer.vocab_size", value=vocab_size, fix=fix)


def _gpt2(folder: Path) -> PreTrainedTokenizerFast:
    backend = _byte_level(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    end = "<|endoftext|>"
    special = {"bos_token": end, "eos_token": end} if backend.token_to_id(end) is not None else {}
    return _wrap(backend, **special)


def _bert(vocab: Path) -> PreTrainedTokenizerFast:
    """WordPiece as BERT has it; it lower-cases where no word of the vocabulary has a capital."""
    model = models.WordPiece.from_file(str(vocab), unk_token=UNKNOWN)
    backend = Tokenizer(model)
    words = set(backend.get_vocab())
    names = {
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "unk_token": UNKNOWN,
    }
    special = {name: token for name, token in names.items() if token in words}
    uncased = not any(set(word) & set(ascii_uppercase) for word in words if not word.startswith("["))
    backend.normalizer = normalizers.BertNormalizer(lowercase=uncased)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return _wrap(backend, **special)


def _from_hub(name: str, revision: str | None) -> Path:
    """A local copy of the tokenizer's data files; the cached one when the Hub cannot be reached."""
    from huggingface_hub import HfApi, snapshot_download

    if not HUB_NAME.fullmatch(name):
        raise UserError(
            "is neither a folder nor a Hub name", where="tokenizer.name", value=name, fix="give a folder that exists"
        )
    try:
        found = HfApi().model_info(name, revision=revision, timeout=5)
        return Path(snapshot_download(name, revision=found.sha, allow_patterns=HUB_FILES))
    except Exception as error:
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, local_files_only=True))
        except Exception:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"is no folder, not in the local cache, and the Hub gave {type(error).__name__}: {reason}",
                where="tokenizer.name",
                value=name,
                fix="give an existing folder, check the name, or download it once with a network",
            ) from error
