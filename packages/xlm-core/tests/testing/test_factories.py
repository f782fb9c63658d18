"""Tiny inputs look as the data module's do."""

from __future__ import annotations

from xlm.noise import Stream, noise_key
from xlm.protocols import Tokenizer
from xlm.testing.factories import (
    infill_examples,
    lm_examples,
    seq2seq_examples,
    tiny_tokenizer,
    unconditional_examples,
)


def test_the_tokenizer_has_one_id_a_letter_after_four_control_tokens():
    tokenizer = tiny_tokenizer(n_letters=5)
    assert isinstance(tokenizer, Tokenizer)
    assert len(tokenizer) == 9
    ids = [getattr(tokenizer, f"{name}_token_id") for name in ("pad", "mask", "bos", "eos")]
    assert ids == [0, 1, 2, 3]
    assert tokenizer("badce")["input_ids"] == [5, 4, 7, 6, 8]
    assert tokenizer.decode([5, 4, 7, 3]) == "bad[EOS]"
    assert tokenizer.decode([2, 5, 4, 7, 3], skip_special_tokens=True) == "bad"


def test_examples_have_the_columns_of_their_role_and_their_keys():
    made = {
        ("input_ids",): lm_examples([2, 3]),
        ("prompt_ids", "target_ids"): seq2seq_examples([2, 3], [4, 1]),
        ("input_ids", "fixed"): infill_examples([2, 3]),
        (): unconditional_examples(2),
    }
    for columns, examples in made.items():
        assert [set(example) for example in examples] == [{*columns, "index", "position", "noise_key"}] * 2
        assert [example["noise_key"] for example in examples] == [noise_key(0, Stream.EVAL, i) for i in range(2)]
    assert [len(example["target_ids"]) for example in made["prompt_ids", "target_ids"]] == [4, 1]
    assert all(4 <= token < 12 for example in lm_examples([50]) for token in example["input_ids"])


def test_the_rate_of_given_tokens_is_the_one_asked_for():
    (nothing,), (everything,) = infill_examples([9], fixed_rate=0.0), infill_examples([9], fixed_rate=1.0)
    assert not any(nothing["fixed"])
    assert all(everything["fixed"])
