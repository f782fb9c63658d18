"""What must hold of the parts that every family shares, and faults that would break it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlm import likelihood, noise, sampling
from xlm.callbacks import ema
from xlm.nn import attention, linear_cross_entropy, linear_logsumexp, rotary
from xlm.protocols import NoiseSchedule
from xlm.testing import oracles
from xlm.testing.gradients import gradient_error
from xlm.testing.oracles import DRAWS, Measured, Mutation, Oracle, OracleCase

SCHEDULES: list[NoiseSchedule] = [
    noise.LinearSchedule(),
    noise.LogLinearSchedule(),
    noise.CosineSchedule(),
    noise.PolynomialSchedule(power=2.0),
    noise.GeometricSchedule(sigma_min=0.05),
]

WEIGHTS = {schedule: f"{type(schedule).__name__}: the weight is the slope of log mask rate" for schedule in SCHEDULES}
TIMES = "low-discrepancy times are uniform, and the same however they are split"
SPREAD = "low-discrepancy times are spread several times more evenly than independent ones"
DRAWN = "draws have the law of their logits"
LOW = "draws from bf16 logits have the law of these logits in fp64"
TOP_P = "top-p keeps the fewest tokens that reach p, the one that crosses it included"
FILTERS = "temperature, top-k and min-p keep what their definitions say"
CROSS_ENTROPY = "cross-entropy by chunks is that of all logits"
HEAD_GRADIENT = "the gradient of cross-entropy by chunks is that of finite differences"
LOGSUMEXP = "log-sum-exp by chunks is that of all logits, and so is its gradient"
LLAMA = "causal attention with rotary positions is that of transformers' Llama"
CACHE = "attention with a cache is that without"
AVERAGE = "the average of the weights is its recursion"
RATIO = "nats a token are a ratio of sums, and the standard error is the delta method's"
UNITS = "perplexity is exp(nats a token), bits a byte are nats / (bytes x ln 2)"


def case() -> OracleCase:
    """The oracles and mutations of the core."""
    weights = [Oracle(name, partial(_weight, schedule)) for schedule, name in WEIGHTS.items()]
    measures: dict[str, Callable[[], Measured]] = {
        TIMES: _times,
        SPREAD: _spread,
        DRAWN: _draws,
        LOW: partial(_draws, torch.bfloat16),
        TOP_P: _top_p,
        FILTERS: _filters,
        CROSS_ENTROPY: _cross_entropy,
        HEAD_GRADIENT: _cross_entropy_gradient,
        LOGSUMEXP: _logsumexp,
        LLAMA: _llama,
        CACHE: _cache,
        AVERAGE: _average,
        RATIO: _ratio,
        UNITS: _units,
    }
    return OracleCase([*weights, *(Oracle(name, measure) for name, measure in measures.items())], mutations())


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# Noise


def _weight(schedule: NoiseSchedule) -> Measured:
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    ahead, behind = (schedule.mask_rate(t + step).log() for step in (1e-6, -1e-6))
    return oracles.equal(
        schedule.elbo_weight(t) / ((ahead - behind) / 2e-6), torch.ones_like(t), 1e-6, "relative error"
    )


def _times() -> Measured:
    places = torch.arange(4096)
    times = noise.low_discrepancy_times(places, seed=3)
    grid = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    apart = float((times.sort().values - grid).abs().max())  # Kolmogorov-Smirnov distance, up to half a step
    split = torch.cat([noise.low_discrepancy_times(places[rank::4], seed=3) for rank in range(4)])
    moved = float((split.reshape(4, -1).T.flatten() - times).abs().max())
    return Measured(max(apart, moved), 2e-3, "distance from uniform, and between ways to split")


def _spread() -> Measured:
    """Independent uniform times give 1."""
    means = noise.low_discrepancy_times(torch.arange(32 * 200), seed=0).reshape(200, 32).mean(1)
    return Measured(float(means.var()) * 12 * 32, 0.2, "variance of a batch's mean time / that of independent ones")


# Sampling


def _uniforms() -> Tensor:
    return noise.uniforms(torch.tensor([7]), DRAWS, dtype=torch.float64)[0]


def _draws(dtype: torch.dtype = torch.float64) -> Measured:
    logits = _normal(40).mul(3).to(dtype)
    logits[5] = -math.inf
    drawn = sampling.draw(logits.expand(DRAWS, -1), _uniforms())
    return oracles.has_law(torch.bincount(drawn, minlength=40), logits.double().softmax(0))


def _kept(logits: Tensor, **options: Any) -> set[int]:
    filtered = sampling.TokenFilter(**options)(logits)
    return set(filtered.isfinite().nonzero().flatten().tolist())


P = torch.tensor([0.08, 0.5, 0.02, 0.25, 0.15], dtype=torch.float64)
"""Of five tokens; most probable first they are 1, 3, 4, 0, 2."""


def _top_p() -> Measured:
    expected = {0.3: {1}, 0.5: {1}, 0.6: {1, 3}, 0.8: {1, 3, 4}, 0.95: {0, 1, 3, 4}, 1.0: {0, 1, 2, 3, 4}}
    n = sum(_kept(P.log(), top_p=p) != kept for p, kept in expected.items())
    return oracles.none_of(n, f"of {len(expected)} sets of tokens differ")


def _filters() -> Measured:
    right = [
        _kept(P.log(), top_k=2) == {1, 3},
        _kept(P.log(), min_p=0.3) == {1, 3, 4},
        _kept(P.log(), temperature=0.0) == {1},
        _kept(P.log(), top_k=3, top_p=0.8) == {1, 3},  # 0.5 and 0.25 of 0.9 reach 0.8
    ]
    hot = sampling.TokenFilter(temperature=2.0)(P.log()).softmax(0)
    right.append(bool(torch.allclose(hot, P.sqrt() / P.sqrt().sum())))
    return oracles.none_of(right.count(False), f"of {len(right)} filters differ")


# Networks and losses


def _head() -> tuple[nn.Parameter, nn.Parameter, Tensor, Tensor]:
    """States, weight, targets and what is never generated; no target is that."""
    return nn.Parameter(_normal(11, 6)), nn.Parameter(_normal(9, 6)), torch.arange(11) % 7 + 2, torch.tensor([0, 1])


def _cross_entropy() -> Measured:
    states, weight, targets, suppressed = _head()
    _, costs = linear_cross_entropy.linear_cross_entropy(states, weight, targets, suppressed=suppressed, chunk=4)
    logits = (states @ weight.T).detach()
    logits[:, suppressed] = -math.inf
    return oracles.equal(costs, F.cross_entropy(logits, targets, reduction="none"))


def _cross_entropy_gradient() -> Measured:
    states, weight, targets, suppressed = _head()
    options: dict[str, Any] = {
        "row_weights": torch.arange(11, dtype=torch.float64),
        "suppressed": suppressed,
        "chunk": 4,
    }

    def loss() -> Tensor:
        total: Tensor = linear_cross_entropy.linear_cross_entropy(states, weight, targets, **options)[0]
        return total

    return Measured(gradient_error(loss, [states, weight]), 1e-6, "relative difference from finite differences")


def _logsumexp() -> Measured:
    states, weight, _, suppressed = _head()
    weights = torch.arange(1, 12, dtype=torch.float64)

    def total() -> Tensor:
        values: Tensor = linear_logsumexp.linear_logsumexp(states, weight, suppressed=suppressed, chunk=4)
        return (values * weights).sum()

    logits = (states @ weight.T).detach()
    logits[:, suppressed] = -math.inf
    apart = abs(float(total().detach() - (logits.logsumexp(1) * weights).sum()))
    return Measured(max(apart, gradient_error(total, [states, weight])), 1e-6, "difference, of value or gradient")


def _llama() -> Measured:
    """With its weights, in fp32."""
    llama: Any = import_module("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(hidden_size=32, num_attention_heads=2, num_key_value_heads=2, attn_implementation="sdpa")
    torch.manual_seed(0)
    theirs, ours = llama.LlamaAttention(config, layer_idx=0).eval(), attention.SelfAttention(32, 2).eval()
    qkv = torch.cat([theirs.q_proj.weight, theirs.k_proj.weight, theirs.v_proj.weight])
    ours.load_state_dict({"qkv.weight": qkv, "out.weight": theirs.o_proj.weight})
    x, places = _normal(2, 9, 32).float(), torch.arange(3, 12)[None].expand(2, 9)
    mask = torch.full((9, 9), -math.inf).triu(1)[None, None]
    with torch.no_grad():
        expected, _ = theirs(x, llama.LlamaRotaryEmbedding(config)(x, places), attention_mask=mask)
        table = rotary.rotary_table(places, 16, config.rope_parameters["rope_theta"])
        return oracles.equal(ours(x, table, causal=True), expected, 1e-5)


def _cache() -> Measured:
    torch.manual_seed(0)
    layer, x = attention.SelfAttention(32, 2).double().eval(), _normal(2, 6, 32)
    table = partial(rotary.rotary_table, head_dim=16)
    places = torch.arange(6)[None].expand(2, 6)
    cache = attention.KVCache(1, 2, 2, 6, 16, torch.float64, "cpu")
    with torch.no_grad():
        parts = [
            layer(x[:, i : i + 1], table(places[:, i : i + 1]), causal=True, cache=cache.layer(0)) for i in range(6)
        ]
        return oracles.equal(torch.cat(parts, 1), layer(x, table(places), causal=True), 1e-10)


# Evaluation


class _AtStep(pl.Trainer):
    """Knows the number of the step, and nothing else."""

    global_step = 0

    def __init__(self) -> None:
        pass


class _Weights(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))


def _average() -> Measured:
    callback, trainer, module = ema.EMA(decay=0.5), _AtStep(), _Weights()
    average, expected = copy.deepcopy(module), torch.zeros(3, dtype=torch.float64)
    callback._average_model = cast(Any, SimpleNamespace(module=average))
    for step in range(1, 8):
        nn.init.constant_(module.weight, step)
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, None, None, 0)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    return oracles.equal(average.weight, expected)


NLL, TOKENS = [10.0, 40.0, 22.0, 8.0], [4, 20, 10, 3]


def _summary() -> likelihood.LikelihoodSummary:
    return likelihood.summarise(
        torch.tensor(NLL, dtype=torch.float64),
        torch.tensor(TOKENS),
        n_bytes=torch.tensor([9, 50, 21, 8]),
        kind="exact",
        estimator="chain_rule",
        event_space="open",
        n_calls=1,
    )


def _ratio() -> Measured:
    """The delta method by hand: sqrt(n / (n - 1) x sum of (nll - r tokens)^2) / tokens, r the ratio of the sums."""
    summary, r = _summary(), sum(NLL) / sum(TOKENS)
    squares = sum((nll - r * n) ** 2 for nll, n in zip(NLL, TOKENS, strict=True))
    error = math.sqrt(len(NLL) / (len(NLL) - 1) * squares) / sum(TOKENS)
    apart = max(abs(summary.nats_per_token - r), abs((summary.nats_per_token_se or math.inf) - error))
    return Measured(apart, 1e-12, "nats a token")


def _units() -> Measured:
    summary, none = _summary(), math.inf
    perplexity, bits = math.exp(sum(NLL) / sum(TOKENS)), sum(NLL) / (88 * math.log(2))
    apart = [abs((summary.perplexity or none) / perplexity - 1), abs((summary.bits_per_byte or none) / bits - 1)]
    return Measured(max(apart), 1e-12, "relative difference")


# Faults


def mutations() -> list[Mutation]:
    """Faults of what every family shares."""
    weight, cosine = "xlm.noise.CosineSchedule.elbo_weight", WEIGHTS[SCHEDULES[2]]
    cross_entropy = "xlm.nn.linear_cross_entropy"
    return [
        Mutation("the weight is the mask rate's slope", {weight: _slope}, cosine),
        Mutation("times are independent", {"xlm.noise.low_discrepancy_times": _independent}, SPREAD),
        Mutation("every rank counts for itself", {"xlm.noise.low_discrepancy_times": _ranked}, TIMES),
        Mutation("draws are shifted by one token", {"xlm.sampling.draw": _shifted}, DRAWN),
        Mutation("draws sum in the logits' type", {"xlm.sampling.draw": _coarse}, LOW),
        Mutation("top-p drops the token that crosses p", {"xlm.sampling.keep_top_p": _stricter}, TOP_P),
        Mutation("top-k is applied after top-p", {"xlm.sampling.TokenFilter.__call__": _reordered}, FILTERS),
        Mutation("control tokens stay in the softmax", {f"{cross_entropy}._softmax_": _all_tokens}, CROSS_ENTROPY),
        Mutation(
            "the head learns from one chunk",
            {f"{cross_entropy}.add_product_": _last_chunk},
            HEAD_GRADIENT,
        ),
        Mutation("log-sum-exp keeps control tokens", {"xlm.nn.linear_logsumexp._without": _kept_all}, LOGSUMEXP),
        Mutation("positions start at 0 in every call", {"xlm.nn.rotary.rotary_table": _from_zero}, CACHE),
        Mutation("attention sees what follows", {"xlm.nn.attention._attend": _uncausal}, LLAMA),
        Mutation("the average is not applied", {"xlm.callbacks.ema.EMA.on_train_batch_end": _nothing}, AVERAGE),
        Mutation("nats a token are a mean of means", {"xlm.likelihood._ratio": _mean_of_means}, RATIO),
        Mutation("perplexity is a power of two", {"xlm.likelihood.math": _base_two}, UNITS),
    ]


def _slope(_: Any) -> Any:
    return lambda self, t: self.mask_rate_derivative(t)


def _independent(_: Any) -> Any:
    return lambda positions, seed: torch.rand(
        positions.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def _ranked(times: Any) -> Any:
    return lambda positions, seed: times(torch.arange(len(positions)), seed)


def _shifted(draw: Any) -> Any:
    return lambda logits, u: (draw(logits, u) + 1) % logits.shape[-1]


def _coarse(_: Any) -> Any:
    def wrong(logits: Tensor, u: Tensor) -> Tensor:
        sums = logits.softmax(-1).cumsum(-1)
        return torch.searchsorted(sums, u[:, None].to(sums)).squeeze(1).clamp_max(logits.shape[-1] - 1)

    return wrong


def _stricter(_: Any) -> Any:
    def wrong(logits: Tensor, p: float) -> Tensor:
        probabilities, order = logits.softmax(-1).sort(descending=True)
        drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, probabilities.cumsum(-1) > p + 1e-9)
        return logits.masked_fill(drop, -math.inf)

    return wrong


def _reordered(_: Any) -> Any:
    def wrong(self: Any, logits: Tensor) -> Tensor:
        if self.temperature == 0:
            return sampling.keep_greatest(logits)
        kept = sampling.keep_top_p(logits / self.temperature, self.top_p)
        return sampling.keep_min_p(sampling.keep_top_k(kept, self.top_k), self.min_p)

    return wrong


def _all_tokens(softmax: Any) -> Any:
    return lambda logits, targets, suppressed, *args: softmax(logits, targets, None, *args)


def _last_chunk(_: Any) -> Any:
    return lambda total, a, b: total.copy_(a @ b)


def _kept_all(_: Any) -> Any:
    return lambda suppressed, logits: logits


def _from_zero(table: Any) -> Any:
    return lambda positions, *args, **options: table(
        torch.arange(positions.shape[1])[None].expand_as(positions), *args, **options
    )


def _uncausal(attend: Any) -> Any:
    return lambda q, k, v, mask, causal: attend(q, k, v, mask, False)


def _nothing(_: Any) -> Any:
    return lambda *args: None


def _mean_of_means(_: Any) -> Any:
    def wrong(values: Tensor, sizes: Tensor) -> tuple[float, float]:
        ratios = values / sizes
        return float(ratios.mean()), float(ratios.std()) / len(values) ** 0.5

    return wrong


def _base_two(right: Any) -> Any:
    return SimpleNamespace(**{**vars(right), "exp": lambda x: 2.0**x})
