"""Where randomness comes from, and how fast a diffusion process hides tokens.

Random numbers are a function, never a state: value ``i`` of a row is SplitMix64's ``i``-th word for the row's key
(Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators"). So the noise of an example does not
depend on workers, ranks, batch mates or on what was drawn before. Words are torch int64 used as 64 unsigned bits:
products wrap around, right shifts are made logical by masking. The plain-integer functions give the same words.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from xlm.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WORD = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, made odd: SplitMix64's step and the step of the times below
FACTOR_1, FACTOR_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # Stafford's variant 13, as published
UNIFORM_BITS = {torch.float32: 24, torch.float64: 53}  # as many as the type holds: rounding never gives 1


class Stream(IntEnum):
    """What a key is for, so that no two uses of one seed share numbers."""

    TRAIN = 0
    EVAL = 1
    ORDER = 2
    TIME = 3
    DROPOUT = 4
    SAMPLE = 5
    LIKELIHOOD = 6


def _signed(word: int) -> int:
    """The same 64 bits as torch's int64 reads them."""
    word &= WORD
    return word - 2**64 if word >> 63 else word


def _shift(z: Tensor, n: int) -> Tensor:
    return (z >> n).bitwise_and_(2 ** (64 - n) - 1)


def mix64(z: Int64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    """SplitMix64's output function, a bijection on 64-bit words."""
    z = (z ^ _shift(z, 30)).mul_(_signed(FACTOR_1))
    z = z.bitwise_xor_(_shift(z, 27)).mul_(_signed(FACTOR_2))
    return z.bitwise_xor_(_shift(z, 31))


def _mix(z: int) -> int:
    """``mix64`` of one plain integer."""
    z &= WORD
    z = (z ^ z >> 30) * FACTOR_1 & WORD
    z = (z ^ z >> 27) * FACTOR_2 & WORD
    return z ^ z >> 31


def _start(seed: int, stream: int) -> int:
    """Where the keys of (seed, stream) begin in SplitMix64's one long sequence."""
    return _mix(_mix(seed + GAMMA) + (stream + 1) * GAMMA)


def noise_key(seed: int, stream: int, n: int) -> int:
    """Key number ``n`` of a stream, in [0, 2**63): what a collator receives as ``noise_key``."""
    return _mix(_start(seed, stream) + (n + 1) * GAMMA) >> 1


def noise_keys(seed: int, stream: int, ns: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """``noise_key`` of many numbers at once."""
    return _shift(mix64((ns + 1) * _signed(GAMMA) + _signed(_start(seed, stream))), 1)


def uniforms(
    keys: Int64[Tensor, " batch"], length: int, *, stream: int = 0, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "batch length"]:
    """Uniform numbers in [0, 1), one row a key.

    A row is a prefix of itself at every greater ``length``, and does not depend on the other rows.

    Args:
        keys: One well-mixed key a row, as ``noise_key`` gives.
        length: Numbers a row.
        stream: Separates several uses of one key, for example the steps of a sampler.
        dtype: float32 (24 random bits) or float64 (53).
    """
    bits = UNIFORM_BITS[dtype]
    counters = torch.arange(1, length + 1, device=keys.device) * _signed(GAMMA)
    words = mix64((keys + _signed(_mix(stream)))[:, None] + counters)
    return _shift(words, 64 - bits).to(dtype).mul_(2.0**-bits)


def low_discrepancy_times(positions: Int64[Tensor, " batch"], seed: int) -> Float64[Tensor, " batch"]:
    """Times in [0, 1) that any run of consecutive positions covers evenly: frac(t_0 + n / golden ratio).

    ``positions`` are places in the global order, not indices of examples (a shuffle would destroy the evenness). Each
    time alone is uniform over seeds. Computed modulo 2**64: as exact for the last position as for the first.
    """
    words = positions * _signed(GAMMA) + _signed(_start(seed, Stream.TIME))
    return _shift(words, 11).to(torch.float64).mul_(2.0**-53)


def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """A uniformly random order of ``range(size)``: the stable argsort of our own words, the same on every version."""
    words = mix64(torch.arange(1, size + 1) * _signed(GAMMA) + noise_key(seed, Stream.ORDER, epoch))
    order: NDArray[np.int64] = words.argsort(stable=True).numpy()
    return order


class LinearSchedule:
    """u = t (Austin et al., 2021)."""

    full_range = True

    def mask_rate(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """u(t), the probability that a token is hidden."""
        return t.clone()

    def mask_rate_derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """du/dt."""
        return torch.ones_like(t)

    def elbo_weight(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """u'/u, infinite at t = 0."""
        return t.reciprocal()


class LogLinearSchedule:
    """u = (1 - eps) t: the total noise -log(alpha) of MDLM (Sahoo et al., 2024), finite at t = 1.

    Args:
        eps: Probability that a token is still visible at t = 1, in [0, 1).
    """

    def __init__(self, *, eps: float = 1e-3) -> None:
        if not 0 <= eps < 1:
            raise UserError("must lie in [0, 1)", where="noise_schedule.eps", value=eps, fix="use 0.001, as MDLM does")
        self.eps = eps
        self.full_range = eps == 0

    def mask_rate(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """u(t), the probability that a token is hidden."""
        return (1 - self.eps) * t

    def mask_rate_derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """du/dt."""
        return torch.full_like(t, 1 - self.eps)

    def elbo_weight(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """u'/u, infinite at t = 0."""
        return t.reciprocal()


class CosineSchedule:
    """u = cos(pi/2 (1 - t)) (MaskGIT, Chang et al., 2022; MD4, Shi et al., 2024); as a sine it is exact near t = 0."""

    full_range = True

    def mask_rate(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """u(t), the probability that a token is hidden."""
        return torch.sin(math.pi / 2 * t)

    def mask_rate_derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """du/dt."""
        return math.pi / 2 * torch.cos(math.pi / 2 * t)

    def elbo_weight(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """u'/u, infinite at t = 0."""
        return math.pi / 2 / torch.tan(math.pi / 2 * t)


class PolynomialSchedule:
    """u = t**power (MD4, Shi et al., 2024).

    Args:
        power: Greater than 0; 1 is the linear schedule, more keeps tokens visible for longer.
    """

    full_range = True

    def __init__(self, *, power: float = 2.0) -> None:
        if not 0 < power < math.inf:
            raise UserError("must be greater than 0", where="noise_schedule.power", value=power, fix="use 2.0")
        self.power = power

    def mask_rate(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """u(t), the probability that a token is hidden."""
        return t**self.power

    def mask_rate_derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """du/dt."""
        return self.power * t ** (self.power - 1)

    def elbo_weight(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """u'/u, infinite at t = 0."""
        return self.power / t


class GeometricSchedule:
    """u = 1 - exp(-sigma), sigma = sigma_min**(1 - t) sigma_max**t (SEDD, Lou et al., 2024). Stops short of both ends.

    Args:
        sigma_min: Total noise at t = 0, greater than 0.
        sigma_max: Total noise at t = 1, greater than ``sigma_min``.
    """

    full_range = False

    def __init__(self, *, sigma_min: float = 1e-4, sigma_max: float = 20.0) -> None:
        if not sigma_min > 0:
            raise UserError(
                "must be > 0", where="noise_schedule.sigma_min", value=sigma_min, fix="use 0.0001, as SEDD does"
            )
        if not sigma_min < sigma_max < math.inf:
            fix = f"give a value above noise_schedule.sigma_min ({sigma_min}); SEDD uses 20"
            raise UserError("must exceed sigma_min", where="noise_schedule.sigma_max", value=sigma_max, fix=fix)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.log_ratio = math.log(sigma_max / sigma_min)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(self.log_ratio * t)

    def mask_rate(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """u(t), the probability that a token is hidden."""
        return -torch.expm1(-self._sigma(t))

    def mask_rate_derivative(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """du/dt."""
        sigma = self._sigma(t)
        return self.log_ratio * sigma * torch.exp(-sigma)

    def elbo_weight(self, t: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """u'/u = sigma' / (exp(sigma) - 1)."""
        sigma = self._sigma(t)
        return self.log_ratio * sigma / torch.expm1(sigma)
