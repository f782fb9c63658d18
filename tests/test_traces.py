"""One format of traces: what any family writes, the same few lines replay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from xlm.commands.assemble import assemble
from xlm.commands.loading import LoadedRun
from xlm.config import compose
from xlm.trace import replay
from xlm.weights import Weights

FAMILIES = {"arlm": "append", "ilm": "insert", "mdlm": "reveal", "mlm": "reveal"}
PROMPTS = ["the", "the quick brown fox", "a", "judge the"]
TEMPLATES = [["the quick ", {"gap": 3}, " jumps over"], [{"gap": 2}, "a dog"], ["over the", {"gap": 1}]]
SMALL = ["model.d_model=16", "model.n_layers=1", "model.n_heads=1", "datamodule.max_length=48", "tokenizer=byte"]
SMALL += ["predictor.min_new_tokens=4"]


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def untrained(request: pytest.FixtureRequest, text_file: Path) -> LoadedRun:
    """A family's sampler with random weights."""
    words = [f"model_type={request.param}", "datamodule=text", f"datamodule.path={text_file}", *SMALL]
    config = compose(words)
    parts = assemble(config)
    parts.model.eval()
    return LoadedRun(Path(), config, parts, Weights({}, "raw", Path(), None))


def asked(run: LoadedRun) -> list:
    return [*PROMPTS, *(TEMPLATES if run.config.family != "arlm" else [])]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_row_is_replayed_from_what_stood_there_to_what_was_answered(untrained, batch_size):
    prompts = [prompt for prompt in [None, *asked(untrained)] for _ in range(2)]
    rows = untrained.generate(prompts, max_new_tokens=12, batch_size=batch_size, trace=True)
    assert max(len(row["trace"]) for row in rows) > 3
    for prompt, row in zip(prompts, rows, strict=True):
        row = json.loads(json.dumps(row))
        *_, last = replay(row["trace"], row["start_ids"])
        given = without(row["start_ids"], untrained.tokenizer.bos_token_id, untrained.tokenizer.mask_token_id)
        assert untrained.tokenizer.decode(given) == fixed_text(prompt)
        whole = without(last, untrained.tokenizer.bos_token_id)
        n = 0 if isinstance(prompt, list) else len(given)  # a template is answered whole
        assert whole[n : n + len(row["ids"])] == row["ids"]
        assert whole[n + len(row["ids"]) :][:1] in ([], [untrained.tokenizer.eos_token_id])
        assert {event["action"] for event in row["trace"]} <= {FAMILIES[untrained.config.family]}


def fixed_text(prompt: str | list | None) -> str:
    return "".join(part for part in prompt or "" if isinstance(part, str))


def without(ids: list[int], *control: int) -> list[int]:
    return [token for token in ids if token not in control]
