"""The reverse process with remasking: what was revealed may be hidden again (ReMDM, Wang et al., 2025, 2503.00307).

With alpha = 1 - mask rate, in a step from t to s a revealed position is hidden again with probability sigma, and a
hidden one is revealed with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). Then a position is hidden with
probability 1 - alpha_s after the step, for every sigma up to sigma_max = min(1, (1 - alpha_s) / alpha_t).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from xlm.errors import UserError
from xlm.trace import Trace
from xlm.unmasking.batch import ORDER_STREAM, REVEAL_STREAM, MaskedPredictionBatch, placed_uniforms
from xlm.unmasking.denoiser import Denoiser
from xlm.unmasking.fill import Filled, Filling, TokenRule

Strategy = Literal["cap", "rescale", "confidence"]


@dataclass(frozen=True)
class Remasking:
    """How probable it is that a revealed position is hidden again.

    Args:
        strategy: ``cap``: sigma = min(eta, sigma_max). ``rescale``: sigma = eta sigma_max. ``confidence``: a row's
            revealed positions share eta sigma_max by softmax(-psi), psi the probability that a token had when it was
            drawn; hidden positions have sigma = 0, so more positions are hidden than the schedule says.
        eta: In [0, 1]; 0 never hides anything again.
    """

    strategy: Strategy = "cap"
    eta: float = 0.02

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            what, fix = f"must be one of {', '.join(get_args(Strategy))}", "use cap"
            raise UserError(what, where="predictor.strategy", value=self.strategy, fix=fix)
        if not 0 <= self.eta <= 1:
            fix = "use 0.02, or 0 to hide nothing again"
            raise UserError("must lie in [0, 1]", where="predictor.eta", value=self.eta, fix=fix)

    @property
    def law(self) -> str:
        """What is drawn, in words that begin with ``exact for T steps`` or ``approximate``."""
        if self.eta == 0:
            return "exact for T steps: the reverse process; O(1/T) from the continuous one"
        if self.strategy == "confidence":
            return "approximate: remasking by confidence does not keep the mask rate of the reverse process"
        return "exact for T steps: the reverse process with remasking, whose mask rates are those without"

    def chances(
        self,
        u: float,
        v: float,
        revealed: Bool[Tensor, "batch seq"],
        psi: Float64[Tensor, "batch seq"],
    ) -> Float64[Tensor, "batch seq"]:
        """sigma of each position in the step from mask rate ``u`` to ``v``.

        Args:
            u: 1 - alpha_t.
            v: 1 - alpha_s.
            revealed: Generated positions that are visible.
            psi: How probable each of their tokens was when it was drawn.
        """
        most = min(1.0, v / (1 - u)) if u < 1 else 1.0
        if self.strategy == "confidence":
            share = (-psi).masked_fill(~revealed, -torch.inf).softmax(1)
            return torch.where(revealed, self.eta * most * share, 0.0)
        return torch.full_like(psi, min(self.eta, most) if self.strategy == "cap" else self.eta * most)


def fill_by_remasking(
    denoiser: Denoiser,
    batch: MaskedPredictionBatch,
    mask_rates: Float64[Tensor, " steps"],
    remasking: Remasking,
    tokens: TokenRule,
    trace: Trace | None,
) -> Filled:
    """The T-step reverse process with remasking; with ``eta=0`` the draws are those of the ancestral plan.

    What is revealed is decided first, so the network is called only for rows that reveal something in a step, at most T
    times a row: steps without a call keep no prediction, because the next call sees another row. A hidden position is
    revealed once its chance to be still hidden falls to a uniform number of its own; hiding it again draws new ones.

    Args:
        denoiser: The network.
        batch: Only predicted positions are revealed and hidden.
        mask_rates: At the start of each of the T steps, falling; the last step reveals everything.
        remasking: sigma.
        tokens: Which tokens may be drawn.
        trace: Records what is revealed and remasked.
    """
    filling, predicted = Filling(denoiser, batch, tokens, trace), batch["predicted"]
    hidden, u = predicted.clone(), placed_uniforms(batch, REVEAL_STREAM)
    stayed, psi = torch.ones_like(u), torch.zeros_like(u)
    told = mask_rates.to(u.device)
    relative = [*(mask_rates / mask_rates[0]).tolist(), 0.0]  # everything is hidden at the start, whatever the schedule
    for step, (before, after) in enumerate(pairwise(relative)):
        sigma = remasking.chances(before, after, predicted & ~hidden, psi)
        stayed *= (after - sigma * (1 - before)) / before
        reveal = hidden & (u >= stayed)
        remask = predicted & ~hidden & (placed_uniforms(batch, ORDER_STREAM + 3 * step) < sigma)
        rows = reveal.any(1).nonzero().squeeze(1)
        if len(rows):
            i, column = reveal[rows].nonzero(as_tuple=True)
            states = denoiser.states(batch, filling.ids, told[step].expand(len(rows)), rows)[i, column]
            psi[rows[i], column] = filling.reveal(step, rows[i], column, states).double()
            filling.n_calls[rows] += denoiser.n_readings
        row, column = remask.nonzero(as_tuple=True)
        if len(row):
            mask_id = denoiser.tokenizer.mask_token_id
            filling.put(step, "remask", row, column, torch.full_like(row, mask_id or 0), sigma[row, column])
            u = torch.where(remask, placed_uniforms(batch, ORDER_STREAM + 3 * step + 1), u)
            again = placed_uniforms(batch, ORDER_STREAM + 3 * step + 2)
            filling.token_u = torch.where(remask, again, filling.token_u)
            stayed = stayed.masked_fill(remask, 1.0)
        hidden = hidden & ~reveal | remask
    return filling.ids, filling.n_calls
