from __future__ import annotations

import pytest
from xlm.data import layout
from xlm.errors import UserError
from xlm.testing.factories import keyed, tiny_tokenizer

PAD, MASK, EOS = 0, 1, 3


def test_rows_of_one_length_make_windows_without_an_attention_mask():
    windows = layout.windows([[4, 5], [6, 7]], PAD, 2)
    assert windows.attention_mask is None
    assert windows.predicted.all()
    assert windows.n_tokens.tolist() == [2, 2]


def test_shorter_rows_are_right_padded_and_their_padding_is_not_predicted():
    windows = layout.windows([[4, 5, 6], [7], []], PAD, 3)
    assert windows.ids.tolist() == [[4, 5, 6], [7, PAD, PAD], [PAD] * 3]
    assert windows.attention_mask is not None
    assert (
        windows.attention_mask.tolist() == windows.predicted.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    )


def test_a_canvas_holds_the_text_and_eos_as_fill_and_counts_one_eos():
    canvases = layout.canvases([[4, 5], []], EOS, 4, "datamodule.max_length")
    assert canvases.ids.tolist() == [[4, 5, EOS, EOS], [EOS] * 4]
    assert canvases.predicted.all()
    assert canvases.n_tokens.tolist() == [3, 1]


def test_a_text_that_leaves_no_room_for_eos_names_the_key_to_raise():
    with pytest.raises(UserError, match=r"a row has 4 tokens, 3 fit in datamodule\.max_target_length"):
        layout.canvases([[4] * 4], EOS, 4, "datamodule.max_target_length")


def test_given_tokens_of_a_template_are_not_predicted_and_padding_is_given():
    rows = keyed([{"input_ids": [4, 5, 6], "fixed": [1, 0, 1]}, {"input_ids": [7], "fixed": [0]}])
    templates = layout.templates(rows, PAD, 3)
    assert templates.predicted.tolist() == [[False, True, False], [True, False, False]]
    assert templates.n_tokens.tolist() == [1, 1]


def test_prompts_stand_left_padded_before_their_canvas():
    rows = keyed([{"prompt_ids": [4]}, {"prompt_ids": [5, 6, 7]}])
    prompted = layout.prompted(rows, layout.empty_canvases(2, MASK, 2), PAD, 3)
    assert prompted.ids.tolist() == [[PAD, PAD, 4, MASK, MASK], [5, 6, 7, MASK, MASK]]
    assert prompted.predicted.tolist() == [[False] * 3 + [True] * 2] * 2
    assert prompted.attention_mask is not None
    assert prompted.attention_mask.tolist() == [[False, False, True, True, True], [True] * 5]
    assert prompted.positions is not None
    assert prompted.positions.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert prompted.prompt_width == 3


def test_prompts_of_one_length_need_neither_attention_mask_nor_positions():
    rows = keyed([{"prompt_ids": []}, {"prompt_ids": []}])
    prompted = layout.prompted(rows, layout.empty_canvases(2, MASK, 2), PAD, 3)
    assert prompted.attention_mask is None
    assert prompted.positions is None
    assert prompted.prompt_width == 0


def test_a_completion_fills_its_row():
    rows = keyed([{"prompt_ids": [4]}, {"prompt_ids": [5, 6, 7]}])
    completed = layout.completions(rows, MASK, 4, 4)
    assert completed.ids.tolist() == [[4, MASK, MASK, MASK], [5, 6, 7, MASK]]
    assert completed.n_tokens.tolist() == [3, 1]


def test_a_prediction_batch_carries_the_keys_and_says_where_answers_end():
    rows = keyed([{"prompt_ids": [4]}, {"prompt_ids": [5, 6]}])
    batch = layout.prediction_batch(rows, layout.completions(rows, MASK, 4, 4), prompt_lengths=[1, 2], ends_at_eos=True)
    assert batch["noise_key"].tolist() == [row["noise_key"] for row in rows]
    assert batch["index"].tolist() == [0, 1]
    assert batch["prompt_lengths"].tolist() == [1, 2]
    assert batch["ends_at_eos"].tolist() == [True, True]


def test_packed_windows_keep_their_segments_and_texts_on_a_canvas_have_none():
    rows = [{**row, "segments": [0, 1, 1]} for row in keyed([{"input_ids": [4, 5, 6]}])]
    segments = layout.texts(rows, pad_id=PAD, eos_id=None, max_length=3).segments
    assert segments is not None
    assert segments.tolist() == [[0, 1, 1]]
    canvas = layout.texts(rows, pad_id=PAD, eos_id=EOS, max_length=5)
    assert canvas.segments is None
    assert canvas.ids.tolist() == [[4, 5, 6, EOS, EOS]]


def test_a_pair_is_its_prompt_and_the_canvas_of_its_target():
    rows = keyed([{"prompt_ids": [4], "target_ids": [5]}, {"prompt_ids": [6, 7], "target_ids": []}])
    pairs = layout.pairs(rows, pad_id=PAD, eos_id=EOS, max_prompt_length=2, max_target_length=2)
    assert pairs.ids.tolist() == [[PAD, 4, 5, EOS], [6, 7, EOS, EOS]]
    assert pairs.n_tokens.tolist() == [2, 1]


def test_templates_and_canvases_to_fill_hold_masks_and_only_canvases_end_at_eos():
    rows = keyed([{"input_ids": [4, 5, 6], "fixed": [1, 0, 1]}])
    template = layout.templates_to_fill(rows, pad_id=PAD, mask_id=MASK, max_length=3)
    assert template["input_ids"].tolist() == [[4, MASK, 6]]
    assert not template["ends_at_eos"].any()
    canvas = layout.canvases_to_fill(rows, mask_id=MASK, size=2)
    assert canvas["input_ids"].tolist() == [[MASK, MASK]]
    assert canvas["ends_at_eos"].all()


@pytest.mark.parametrize(
    ("longest_prompt", "canvas", "expected", "fits"),
    [(None, None, [4, MASK, MASK, MASK], 3), (None, 2, [4, MASK, MASK], 2), (1, 2, [4, MASK, MASK], 1)],
)
def test_a_prompt_to_complete_may_take_what_its_canvas_leaves(longest_prompt, canvas, expected, fits):
    sizes = {"max_length": 4, "max_prompt_length": longest_prompt, "max_target_length": canvas}
    batch = layout.prompts_to_complete(keyed([{"prompt_ids": [4]}]), pad_id=PAD, mask_id=MASK, **sizes)
    assert batch["input_ids"].tolist() == [expected]
    with pytest.raises(UserError, match=f"a row has {fits + 1} tokens, {fits} fit"):
        layout.prompts_to_complete(keyed([{"prompt_ids": [4] * (fits + 1)}]), pad_id=PAD, mask_id=MASK, **sizes)


@pytest.mark.parametrize(
    ("canvas", "fix"),
    [
        (8, "a row has 2 tokens, 0 fit before an answer within .* in max_new_tokens .8.; fix: use 6 or fewer"),
        (7, "use 6 or fewer"),
        (6, None),
    ],
)
def test_a_canvas_larger_than_what_a_prompt_leaves_names_the_key_that_was_typed(canvas, fix):
    examples = keyed([{"prompt_ids": [4]}, {"prompt_ids": [4, 5]}])
    sizes = {"max_length": 8, "max_prompt_length": None, "max_target_length": canvas}
    if fix is None:
        batch = layout.prompts_to_complete(examples, pad_id=PAD, mask_id=MASK, **sizes)
        assert batch["input_ids"].shape == (2, 8)
    else:
        with pytest.raises(UserError, match=fix):
            layout.prompts_to_complete(examples, pad_id=PAD, mask_id=MASK, **sizes)


def test_a_prompt_that_leaves_nothing_is_to_be_shortened():
    sizes = {"max_length": 2, "max_prompt_length": None, "max_target_length": 1}
    with pytest.raises(UserError, match=r"a row has 3 tokens, 1 fit .*fix: shorten the prompt"):
        layout.prompts_to_complete(keyed([{"prompt_ids": [4] * 3}]), pad_id=PAD, mask_id=MASK, **sizes)


def test_lengths_within_are_the_lengths_of_the_rows():
    assert layout.lengths_within([[1, 2], []], 2, "a.key").tolist() == [2, 0]
    assert layout.lengths_within([], 2, "a.key").tolist() == []


def test_a_tokenizer_without_the_token_is_refused_by_its_name():
    tokenizer = tiny_tokenizer()
    assert layout.special_id(tokenizer, "mask") == MASK
    tokenizer.mask_token = None
    with pytest.raises(UserError, match=r"the tokenizer has no mask token.*fix: add a mask token"):
        layout.special_id(tokenizer, "mask")
