from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from xlm.data.packing import Layout, Packed, Packer, tokens_of
from xlm.data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, WordTokenizer, encode
from xlm.errors import UserError
from xlm.testing.factories import tiny_tokenizer

BYTES = ByteTokenizer().build(())
EOS = BYTES.eos_token_id
EMOJI = "a\U0001f600é\r\n\0 [MASK] z"


def packer(role: str, tokenizer: Any = BYTES, **options: Any) -> Packer:
    layout = {
        "event_space": "window",
        "on_too_long": "error",
        "document_mask": False,
        "max_length": 4,
        "max_prompt_length": 3,
        "max_target_length": 3,
        "vocab_size": len(tokenizer),
    }
    return Packer(tokenizer, Layout(role=role, **{**layout, **options}), "val.cats")


def joined(batches: Sequence[Packed]) -> dict[str, list[Any]]:
    """All token columns of some batches, as lists."""
    columns: dict[str, list[Any]] = {}
    for batch in batches:
        for name, values in batch.tokens.items():
            columns.setdefault(name, []).extend(np.asarray(value).tolist() for value in values)
    return columns


def pack(pack: Packer, **columns: list[str]) -> dict[str, list[Any]]:
    return joined(list(pack([columns])))


def test_documents_are_joined_with_eos_and_cut_into_windows_and_the_rest_is_counted():
    a, b, c, d = b"abcd"
    windows = packer("lm", max_length=3)
    assert pack(windows, text=["ab", "c", "", "d", "ab"])["input_ids"] == [[a, b, EOS], [c, EOS, EOS], [d, EOS, a]]
    assert windows.counts["dropped_tokens"] == 2
    assert windows.counts["dropped_bytes"] == 1


def test_windows_do_not_depend_on_how_documents_are_batched():
    texts = ["abc", "d" * 17, "", "ef", EMOJI] * 3
    together = joined(list(packer("lm", document_mask=True)([{"text": texts}])))
    one_by_one = joined(list(packer("lm", document_mask=True)([{"text": [text]} for text in texts])))
    assert one_by_one == together


def test_segments_number_the_documents_of_each_window_from_zero():
    rows = pack(packer("lm", document_mask=True), text=["ab", "c", "defgh"])
    assert rows["segments"] == [[0, 0, 0, 1], [0, 1, 1, 1]]


@pytest.mark.parametrize(
    "tokenizer",
    [
        BYTES,
        CharTokenizer().build([EMOJI]),
        BPETokenizer(vocab_size=270).build([EMOJI] * 3),
        WordTokenizer().build([EMOJI]),
    ],
)
def test_every_byte_of_the_source_is_in_one_window_or_was_dropped(tokenizer):
    windows = packer("lm", tokenizer, max_length=3)
    rows = pack(windows, text=[EMOJI, "éa", EMOJI])
    total = sum(len(text.encode()) for text in [EMOJI, "éa", EMOJI])
    assert sum(rows["n_bytes"]) + windows.counts["dropped_bytes"] == windows.counts["bytes"] == total


def test_of_several_tokens_for_one_character_the_first_has_its_bytes():
    tokens = tokens_of("a\U0001f600b", encode(BYTES, ["a\U0001f600b"])[0])
    assert tokens.n_bytes.tolist() == [1, 4, 0, 0, 0, 1]


def test_bytes_that_no_token_covers_belong_to_the_next_token_or_the_last():
    tokenizer = WordTokenizer().build(["é b"])
    tokens = tokens_of("  é   b ", encode(tokenizer, ["  é   b "])[0])
    assert tokens.n_bytes.tolist() == [4, 5]


def test_an_open_text_is_one_row_without_eos_but_with_room_for_it():
    rows = pack(packer("lm", event_space="open"), text=["abc", ""])
    assert rows == {"input_ids": [[*b"abc"], []], "n_bytes": [3, 0]}
    with pytest.raises(UserError, match=r"val.cats: example 1 has 4 tokens and EOS, too many in datamodule.max_length"):
        pack(packer("lm", event_space="open"), text=["abc", "abcd"])


def test_a_truncated_text_keeps_its_beginning_and_is_counted():
    texts = packer("lm", event_space="open", on_too_long="truncate")
    [batch] = texts([{"text": ["abcde", "f"], "title": ["A", "F"]}])
    assert batch.text == {"text": ["abc", "f"], "title": ["A", "F"]}
    assert joined([batch]) == {"input_ids": [[*b"abc"], [*b"f"]], "n_bytes": [3, 1]}
    assert texts.counts["truncated"] == 1


def test_a_split_text_loses_nothing_and_is_counted():
    texts = packer("lm", event_space="open", on_too_long="split")
    [batch] = texts([{"text": ["abcdefg", "h"]}])
    assert batch.text == {"text": ["abc", "def", "g", "h"]}
    assert joined([batch])["n_bytes"] == [3, 3, 1, 1]
    assert texts.counts["split"] == 1


def test_a_prompt_keeps_its_end_a_target_its_beginning_and_bytes_are_the_targets():
    pairs = packer("seq2seq", on_too_long="truncate")
    rows = pack(pairs, prompt=["abcd", ""], target=["éx", "y"])
    assert rows["prompt_ids"] == [[*b"bcd"], []]
    assert rows["target_ids"] == [[*"é".encode()], [*b"y"]]
    assert rows["n_bytes"] == [2, 1]
    assert pairs.counts["truncated"] == 2
    assert pairs.counts["documents"] == 2


@pytest.mark.parametrize(("prompt", "target", "key"), [("abcd", "a", "max_prompt"), ("abc", "abc", "max_target")])
def test_a_prompt_or_target_that_does_not_fit_is_named_with_its_key(prompt, target, key):
    with pytest.raises(UserError, match=rf"example 1 .*datamodule\.{key}_length \(3\)"):
        pack(packer("seq2seq"), prompt=["abc", prompt], target=["ab", target])


def test_prompts_without_targets_can_be_predicted():
    assert pack(packer("seq2seq_prediction"), prompt=["ab"]) == {"prompt_ids": [[*b"ab"]], "n_bytes": [0]}


def test_a_token_is_given_if_all_its_characters_are():
    tokenizer = BPETokenizer(vocab_size=261).build(["xy xy"])
    rows = pack(packer("infill", tokenizer), text=["xyaé", "xyxy"], fixed=["1010", "1110"])
    assert rows["fixed"] == [[False, True, False, False], [True, False]]
    assert rows["n_bytes"] == [2 + 2, 2]


@pytest.mark.parametrize("fixed", ["01", "0120", "01 1"])
def test_marks_that_do_not_fit_the_text_are_refused(fixed):
    with pytest.raises(UserError, match="example 0 has 4 characters"):
        pack(packer("infill"), text=["abcd"], fixed=[fixed])


def test_blank_rows_have_no_tokens():
    assert pack(packer("unconditional"), text=["", ""]) == {"n_bytes": [0, 0]}


def test_a_control_token_that_a_tokenizer_finds_in_text_is_named_with_its_example():
    with pytest.raises(UserError, match=r"val.cats: example 2 has token id 0"):
        pack(packer("lm", tiny_tokenizer()), text=["ab", "", "a b"])  # its unknown token is [PAD]


def test_an_id_beyond_the_vocabulary_is_named_with_its_example():
    with pytest.raises(UserError, match=r"example 3 has token id 122: .*100 ids"):
        list(packer("lm", vocab_size=100)([{"text": ["ab", "c"]}, {"text": ["a", "bz"]}]))


def test_unknown_tokens_are_counted():
    chars = packer("lm", CharTokenizer().build(["ab"]))
    pack(chars, text=["abxy", "z"])
    assert chars.counts["unknown"] == 3
