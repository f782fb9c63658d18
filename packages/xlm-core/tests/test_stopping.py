from __future__ import annotations

import pytest
from xlm.errors import UserError
from xlm.stopping import stop_strings, stopped_length, text_before
from xlm.testing.factories import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
A, B, C = 4, 5, 6


def test_one_string_and_several_are_a_list_and_an_empty_one_is_refused():
    assert stop_strings("end") == ["end"]
    assert stop_strings(["a", "b"]) == ["a", "b"]
    with pytest.raises(UserError, match=r"holds an empty string in predictor\.stop"):
        stop_strings(["a", ""])


@pytest.mark.parametrize(("stop", "length"), [(["bc"], 3), (["cc", "b"], 2), (["a"], 1), (["cb"], 4), ([], 4)], ids=str)
def test_an_answer_is_cut_after_the_token_that_completes_the_first_stop_string(stop, length):
    assert stopped_length(TOKENIZER, [A, B, C, A], stop) == length


def test_the_text_ends_before_the_first_stop_string():
    assert text_before("abcabc", ["cab", "bc"]) == "a"
    assert text_before("abc", ["x"]) == "abc"
