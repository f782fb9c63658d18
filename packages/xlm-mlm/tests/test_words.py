from __future__ import annotations

from types import SimpleNamespace

import torch
from xlm.data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, WordTokenizer, encode
from xlm_mlm.words import Words

TEXT = "the cats played, the cat plays\nin the playing field"


def words_of(tokenizer, text: str) -> list[str]:
    """The pieces of each word, joined."""
    ids = encode(tokenizer, [text])[0].ids
    row = torch.tensor([ids])
    first = Words(tokenizer).first(row, torch.ones_like(row, dtype=torch.bool))[0].tolist()
    groups: dict[int, list[int]] = {}
    for column, token in zip(first, ids, strict=True):
        groups.setdefault(column, []).append(token)
    return [tokenizer.decode(group) for group in groups.values()]


def test_bytes_characters_and_merged_bytes_make_words_that_begin_with_white_space():
    expected = ["the", " cats", " played,", " the", " cat", " plays", "\nin", " the", " playing", " field"]
    for factory in (ByteTokenizer(), CharTokenizer(), BPETokenizer(vocab_size=280)):
        assert words_of(factory.build([TEXT]), TEXT) == expected


def test_a_tokenizer_of_words_has_one_token_a_word():
    assert words_of(WordTokenizer().build([TEXT]), TEXT) == TEXT.split()


def test_characters_without_white_space_are_words_of_their_own():
    assert words_of(CharTokenizer().build(["1234"]), "1324") == ["1", "3", "2", "4"]


def marked(*pieces: str, special: tuple[int, ...] = ()) -> SimpleNamespace:
    class Vocabulary(SimpleNamespace):
        def __len__(self):
            return len(pieces)

    return Vocabulary(all_special_ids=list(special), convert_ids_to_tokens=lambda ids: [pieces[i] for i in ids])


def test_wordpiece_marks_what_goes_on_with_a_word():
    words = Words(marked("play", "##ing", "##s", "cat"))
    ids = torch.tensor([[0, 1, 3, 0, 2, 2]])
    assert words.first(ids, torch.ones_like(ids, dtype=torch.bool)).tolist() == [[0, 0, 2, 3, 3, 3]]


def test_a_vocabulary_of_bytes_may_hold_two_hashes():
    words = Words(marked("Ġa", "b", "##", "Ġc"))
    ids = torch.tensor([[0, 1, 2, 3]])
    assert words.first(ids, torch.ones_like(ids, dtype=torch.bool)).tolist() == [[0, 0, 0, 3]]


def test_a_word_ends_at_control_tokens_and_at_given_ones():
    words = Words(marked("[EOS]", "Ġa", "b", special=(0,)))
    ids = torch.tensor([[1, 2, 0, 2, 2, 2]])
    predicted = torch.tensor([[True, True, True, True, False, True]])
    assert words.first(ids, predicted).tolist() == [[0, 0, 2, 3, 3, 5]]
