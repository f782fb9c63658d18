from __future__ import annotations

from typing import Any

import torch
from xlm.data.layout import completions, prediction_batch, templates
from xlm.testing.factories import keyed, tiny_tokenizer
from xlm.unmasking.answers import answer_rows, answers, read_answers

TOKENIZER = tiny_tokenizer()  # 0 pad, 1 mask, 2 bos, 3 eos, a = 4, b = 5, ...
PAD, MASK, EOS = 0, 1, 3


def test_answers_are_moved_to_the_left_and_cut_before_their_end():
    ids = torch.tensor([[9, 9, 4, 5, 3, 6], [9, 7, 3, 8, 0, 0]])
    answer = torch.tensor([[False, False, True, True, True, True], [False, True, True, True, False, False]])
    tokens, lengths = answers(ids, answer, ends_at=torch.tensor([3, -1]), pad_id=0)
    assert lengths.tolist() == [2, 3]
    assert tokens.tolist() == [[4, 5, 0], [7, 3, 8]]


def prompts(*rows: list[int], length: int = 8) -> Any:
    examples = keyed([{"prompt_ids": row} for row in rows])
    layout = completions(examples, MASK, length, length)
    return prediction_batch(examples, layout, prompt_lengths=[len(row) for row in rows], ends_at_eos=True)


def read(batch: Any, ids: list[list[int]], stop: tuple[str, ...]) -> list[tuple[str, list[int]]]:
    n_calls = torch.ones(len(ids), dtype=torch.int64)
    predictions = read_answers(TOKENIZER, batch, torch.tensor(ids), n_calls, stop=stop)
    assert predictions["ids"].shape[1] == int(predictions["lengths"].max())
    return [(row["prediction"], row["ids"]) for row in answer_rows(TOKENIZER, batch, predictions, stop=stop)]


def test_an_answer_ends_with_the_token_that_completes_a_stop_string_and_its_text_before_the_string():
    batch = prompts([9], [6, 7])
    ids = [[9, 4, 5, 6, 7, 4, 5, 6], [6, 7, 4, 4, 4, EOS, 6, 7]]
    assert read(batch, ids, ("cd",)) == [("ab", [4, 5, 6, 7]), ("aaa", [4, 4, 4])]
    assert read(batch, ids, ()) == [("abcdabc", [4, 5, 6, 7, 4, 5, 6]), ("aaa", [4, 4, 4])]


def test_the_first_of_several_stop_strings_counts():
    assert read(prompts([9]), [[9, 4, 5, 6, 7, 8, 8, 8]], ("e", "c")) == [("ab", [4, 5, 6])]


def test_a_stop_string_at_the_start_leaves_no_text():
    assert read(prompts([9]), [[9, 4, 5, 6, 7, 8, 8, 8]], ("a",)) == [("", [4])]


def test_a_stop_string_in_the_prompt_or_in_a_template_stops_nothing():
    assert read(prompts([4]), [[4, 5, 5, EOS, 5, 5, 5, 5]], ("a",)) == [("bb", [5, 5])]
    examples = keyed([{"input_ids": [4, 5, 6], "fixed": [1, 0, 1]}])
    batch = prediction_batch(examples, templates(examples, PAD, 3), prompt_lengths=[0], ends_at_eos=False)
    assert read(batch, [[4, 5, 6]], ("b",)) == [("abc", [4, 5, 6])]
