"""Scales on which a column of numbers is roughly normal."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from service.data.table import Kind
from service.system.frozen import Frozen

GAIN_OF_BENDING = 0.1  # nats per row by which a curved scale must fit better than a straight one


class Straight(Frozen):
    """y = v. `forward` maps values to the scale, `backward` maps them back; float64."""

    kind: Literal["straight"] = "straight"

    def forward(self, v: np.ndarray) -> np.ndarray:
        return v

    def backward(self, y: np.ndarray) -> np.ndarray:
        return y

    def log_slope(self, v: np.ndarray) -> np.ndarray:
        """log dy / dv."""
        return np.zeros_like(v)


class Bent(Frozen):
    """y = asinh((v - origin) / stretch): linear near the origin, logarithmic far from it, and finite everywhere."""

    kind: Literal["bent"] = "bent"
    origin: float
    stretch: float

    def forward(self, v: np.ndarray) -> np.ndarray:
        return np.arcsinh((v - self.origin) / self.stretch)

    def backward(self, y: np.ndarray) -> np.ndarray:
        return self.origin + self.stretch * np.sinh(np.clip(y, -80.0, 80.0))

    def log_slope(self, v: np.ndarray) -> np.ndarray:
        """log dy / dv."""
        return -np.log(self.stretch) - 0.5 * np.log1p(np.square((v - self.origin) / self.stretch))

    @staticmethod
    def positive(values: np.ndarray) -> Bent:
        """Nearly a logarithm, for values above 0: centred on 0, with half of their 1 % quantile as stretch."""
        return Bent(origin=0.0, stretch=max(float(np.quantile(values, 0.01)), 1e-30) / 2.0)

    @staticmethod
    def around(values: np.ndarray, share: float) -> Bent:
        """Centred on the median, with a share of the interquartile range as stretch."""
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        return Bent(origin=float(middle), stretch=max(share * float(high - low), 1e-12 * max(1.0, abs(float(middle)))))


class Logarithm(Frozen):
    """y = log(v + offset), for counts."""

    kind: Literal["logarithm"] = "logarithm"
    offset: float

    def forward(self, v: np.ndarray) -> np.ndarray:
        """Counts to the scale; numbers at or below -offset, which no count has, land far below all counts."""
        return np.log(np.maximum(v + self.offset, 1e-12))

    def backward(self, y: np.ndarray) -> np.ndarray:
        return np.exp(np.clip(y, -80.0, 80.0)) - self.offset

    def log_slope(self, v: np.ndarray) -> np.ndarray:
        """log dy / dv."""
        return -np.log(np.maximum(v + self.offset, 1e-12))


Scale = Annotated[Straight | Bent | Logarithm, Field(discriminator="kind")]


def normal_fit(values: np.ndarray, scale: Straight | Bent | Logarithm) -> float:
    """Mean log density of values under a normal distribution fitted on the scale, up to a constant, nats."""
    spread = max(float(scale.forward(values).std()), 1e-12)
    return -math.log(spread) + float(scale.log_slope(values).mean())


def bending_gain(values: np.ndarray, scale: Bent) -> float:
    """Nats per row by which a curved scale fits better than a straight one."""
    return normal_fit(values, scale) - normal_fit(values, Straight())


def number_scale(values: np.ndarray, kind: Kind) -> Straight | Bent:
    """The scale on which values look most normal; curved only if that gains enough, or the kind is positive."""
    bent = [Bent.around(values, share) for share in (0.1, 0.5, 2.0)] if kind == "real" else []
    if values.min() > 0:
        bent.append(Bent.positive(values))
    best = max(bent, key=lambda scale: normal_fit(values, scale))
    return best if kind == "positive" or bending_gain(values, best) > GAIN_OF_BENDING else Straight()


def count_scale(values: np.ndarray) -> Logarithm:
    """The logarithm on which counts look most normal; a large offset makes it almost linear."""
    offsets = [0.5, *(max(1.0, float(values.mean())) * factor for factor in (0.1, 1.0, 10.0, 100.0))]
    return max((Logarithm(offset=offset) for offset in offsets), key=lambda scale: normal_fit(values, scale))
