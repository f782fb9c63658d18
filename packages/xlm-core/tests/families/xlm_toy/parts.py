"""The four parts. Predictions come from a row's key, likelihoods from the network."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from xlm.answers import json_rows
from xlm.data.padding import keys, pad, padding_mask
from xlm.errors import UserError
from xlm.noise import uniforms
from xlm.sampling import TokenFilter
from xlm.trace import Trace


class ToyModel(nn.Module):
    """Predicts a token from the one before it."""

    def __init__(
        self,
        *,
        vocab_size: int,
        max_length: int,
        d_model: int = 16,
        n_heads: int = 2,
        d_ff: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if d_model % n_heads:
            raise UserError("is no multiple of model.n_heads", where="model.d_model", value=d_model, fix="use 16")
        if not 0 <= dropout < 1:
            raise UserError("must lie in [0, 1)", where="model.dropout", value=dropout, fix="use 0.0")
        self.max_length = max_length
        self.embed, self.head = nn.Embedding(vocab_size, d_model), nn.Linear(d_model, vocab_size, bias=False)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids))


class BareModel(ToyModel):
    """Knows neither heads nor dropout."""

    def __init__(self, *, vocab_size: int, max_length: int) -> None:
        super().__init__(vocab_size=vocab_size, max_length=max_length)


class ToyLoss:
    """Nats per real token."""

    def __init__(self, *, model: ToyModel, tokenizer, scale: float = 1.0) -> None:
        self.model, self.tokenizer, self.scale = model, tokenizer, scale

    def loss_fn(self, batch):
        costs = F.cross_entropy(self.model(batch["input_ids"]).transpose(1, 2), batch["target_ids"], reduction="none")
        nll, n_tokens = (costs * batch["predicted"]).sum(1), batch["predicted"].sum(1)
        total = n_tokens.sum()
        return {"loss": nll.sum() / total, "loss_denominator": total, "nll": nll.detach(), "n_tokens": n_tokens}


class ToyPredictor:
    """Letters drawn from the row's key; at most ``max_new_tokens``, and at most what is left of ``max_length``."""

    noise_schedule = None

    def __init__(
        self,
        *,
        model: ToyModel,
        tokenizer,
        max_new_tokens: int | None = None,
        max_target_length: int | None = None,
        top_p: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.filter = TokenFilter(temperature=temperature, top_p=top_p)
        self.longest = max_new_tokens or max_target_length or 6

    def predict(self, batch):
        u = uniforms(batch["noise_key"], self.longest + 1, dtype=torch.float64)
        lengths = 1 + (u[:, 0] * self.longest).long()
        ids = 1 + (u[:, 1:] * (4 if self.filter.temperature else 1)).long()
        return {"ids": ids, "lengths": lengths, "n_calls": lengths}

    def to_dict(self, batch, preds):
        rows = zip(batch["index"].tolist(), preds["ids"].tolist(), preds["lengths"].tolist(), strict=True)
        return [
            {"index": i, "prompt": "", "prediction": self.tokenizer.decode(ids[:n]), "ids": ids[:n], "n_calls": n}
            for i, ids, n in rows
        ]

    def log_likelihood(self, batch, *, draws: int = 1):
        losses = ToyLoss(model=self.model, tokenizer=self.tokenizer).loss_fn(batch)
        return {
            "nll": losses["nll"].double(),
            "n_tokens": losses["n_tokens"],
            "kind": "exact",
            "estimator": "chain rule",
            "n_calls": 1,
        }


class TracedPredictor(ToyPredictor):
    """As many letters; it says when it appended each."""

    def __init__(
        self,
        *,
        model: ToyModel,
        tokenizer,
        max_new_tokens: int | None = None,
        max_target_length: int | None = None,
        trace: bool = False,
    ) -> None:
        lengths = {"max_new_tokens": max_new_tokens, "max_target_length": max_target_length}
        super().__init__(model=model, tokenizer=tokenizer, **lengths)
        self.trace = trace

    def predict(self, batch):
        predictions = super().predict(batch)
        if self.trace:
            trace, rows = Trace(), torch.arange(len(batch["index"]))
            for step in range(predictions["ids"].shape[1]):
                drawn = predictions["lengths"] > step
                places = torch.tensor([len(start) + step for start in self.starts(batch)])
                columns = (rows, places, predictions["ids"][:, step], torch.full(rows.shape, 0.25))
                trace.record(step, "append", *(column[drawn] for column in columns))
            predictions["trace"] = trace.events()
        return predictions

    def starts(self, batch):
        return [[token for token in row if token != self.tokenizer.pad_token_id] for row in batch["input_ids"].tolist()]

    def to_dict(self, batch, preds):
        asked = {"prompts": [""] * len(batch["index"]), "stop": [()] * len(batch["index"])}
        return json_rows(self.tokenizer, batch["index"], preds, starts=self.starts(batch), **asked)


def tokens(example, column):
    return [int(token) for token in example.get(column, [])]


class ToyCollator:
    """Rows of ``input_ids``, or of a prompt and its target."""

    def __init__(self, *, tokenizer, max_length: int, event_space: str = "open", t_min: float = 0.0) -> None:
        self.tokenizer, self.max_length, self.event_space = tokenizer, max_length, event_space
        if not 0 <= t_min < 1:
            raise UserError("must lie in [0, 1)", where="collators.t_min", value=t_min, fix="use 0")

    def __call__(self, examples):
        rows = [tokens(e, "prompt_ids") + tokens(e, "input_ids") + tokens(e, "target_ids") for e in examples]
        ids = pad(rows, self.tokenizer.pad_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        previous = torch.cat([torch.full_like(ids[:, :1], self.tokenizer.bos_token_id), ids[:, :-1]], dim=1)
        predicted = padding_mask(lengths, ids.shape[1])
        return {"input_ids": previous, "target_ids": ids, "predicted": predicted, **keys(examples)}


class ToyPromptCollator:
    """Rows to be answered."""

    def __init__(self, *, tokenizer, max_length: int, event_space: str = "open") -> None:
        self.tokenizer, self.event_space = tokenizer, event_space

    def __call__(self, examples):
        rows = [tokens(e, "prompt_ids") or [0] for e in examples]
        return {"input_ids": pad(rows, self.tokenizer.pad_token_id), **keys(examples)}


class CriticLoss(ToyLoss):
    """Tokens weigh what a second network says of the token before them."""

    def __init__(self, *, model: ToyModel, tokenizer, vocab_size: int, auxiliary_optimizer=None) -> None:
        super().__init__(model=model, tokenizer=tokenizer)
        self.auxiliary, self.auxiliary_optimizer = nn.Embedding(vocab_size, 1), auxiliary_optimizer

    def loss_fn(self, batch):
        said = self.auxiliary(batch["input_ids"]).squeeze(-1).sigmoid()
        costs = F.cross_entropy(self.model(batch["input_ids"]).transpose(1, 2), batch["target_ids"], reduction="none")
        total = batch["predicted"].sum()
        return {"loss": (said * costs * batch["predicted"]).sum() / total, "loss_denominator": total}


class NaNLoss(ToyLoss):
    """What a check must notice."""

    def loss_fn(self, batch):
        losses = super().loss_fn(batch)
        return {**losses, "loss": losses["loss"] * float("nan")}
