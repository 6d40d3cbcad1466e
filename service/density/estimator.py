"""The estimator's settings: how log p(x) is estimated, and when a row has enough draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from service.density.laplace import FEW_LATENTS
from service.density.quasirandom import REPLICATES
from service.density.search import EVERY_AXIS, Effort
from service.density.starts import MANY_LATENTS, lookup_evaluations
from service.errors import CalibrationError
from service.vae.network import VAE

MAX_SAMPLES = 2**17
TYPICAL_SAMPLES = 128
PIXEL_TOLERANCE = 1e-4  # nats for each pixel and channel: less than 0.0002 bits
START_WINDOW = 50.0  # nats below the best start
END_TOLERANCE = 0.1  # nats: standard error at which a reliable estimate may stop near the ends of the pilot band

SettingName = Literal["fast", "standard", "thorough"]
SearchName = Literal["narrow", "wide"]
SETTINGS: tuple[SettingName, ...] = get_args(SettingName)


@dataclass(frozen=True, slots=True)
class Estimator:
    """How log p(x) is estimated. Thresholds hold only for the estimator that they were fitted with.

    Stored in the card as is; equal fields give equal scores.

    A row's samples double from `first_samples` until one of three things happens: its standard error is at most
    `tolerance` nats, its interval is clear of the ends of the band that judges it, or `max_samples` are drawn (after a wide
    search, twice as many as before it). Calibration rows have no band yet. They use `ends`, the ends of a pilot band, which
    is fitted to separate pilot rows and then frozen. Rows that are judged later must also be clear of `ends`, or have a
    standard error of at most END_TOLERANCE.

    The pilot rows also give `typical_error`, the standard error of a typical row's estimate from TYPICAL_SAMPLES draws, and
    `typical_decay`: its square falls as the number of draws to the power of -typical_decay.
    """

    setting: SettingName = "standard"
    first_samples: int = 32
    max_samples: int = 4096
    tolerance: float = 0.03
    ends: tuple[float, ...] | None = None
    search: SearchName = "narrow"
    probed_axes: int = 14
    typical_error: float = 0.0
    typical_decay: float = 1.0
    anneal: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("first_samples", "max_samples"):
            value = getattr(self, name)
            if not REPLICATES <= value <= MAX_SAMPLES or value & (value - 1):
                raise CalibrationError(
                    f"{name} is {value}, expected a power of two from {REPLICATES} to {MAX_SAMPLES:,}"
                )
        if self.first_samples > self.max_samples:
            raise CalibrationError("first_samples is above max_samples")
        if self.probed_axes < 1:
            raise CalibrationError("probed_axes is below 1")
        if not 0 <= self.tolerance < math.inf:
            raise CalibrationError("tolerance must be at least 0 nats")

    @staticmethod
    def of(setting: SettingName) -> Estimator:
        """The estimator for a setting, before it has ends to stop at."""
        match setting:
            case "fast":
                return Estimator("fast", first_samples=64, max_samples=64, anneal=False)
            case "standard":
                return Estimator("standard")
            case "thorough":
                return Estimator(
                    "thorough", tolerance=0.02, first_samples=256, max_samples=16384, probed_axes=EVERY_AXIS
                )
        raise CalibrationError(f"unknown estimator {setting!r}, expected one of {', '.join(SETTINGS)}")

    def for_levels(self, features: int) -> Estimator:
        """The estimator for images of so many 8-bit levels, whose scores are hundreds of nats apart; not of `thorough`."""
        if self.setting == "thorough":
            return self
        return replace(self, tolerance=max(self.tolerance, PIXEL_TOLERANCE * features))

    @property
    def stops_at_ends(self) -> bool:
        """Whether a row's samples stop doubling once its verdict is certain, which requires the ends of a band."""
        return self.setting == "standard"

    def endless(self, tolerance: float, max_samples: int) -> Estimator:
        """The estimator for rows with missing or hidden cells, which no band's ends let stop: a rough and a cheap one."""
        return replace(
            self,
            ends=None,
            tolerance=max(self.tolerance, tolerance),
            max_samples=max(self.first_samples, min(self.max_samples, max_samples)),
            anneal=False,
        )

    def typical_variance(self, samples: int) -> float:
        """Squared standard error of a typical row's estimate from so many draws."""
        decay: float = (samples / TYPICAL_SAMPLES) ** -self.typical_decay
        return self.typical_error**2 * decay

    def effort(self, latents: int) -> Effort:
        """Effort of the search for a row's modes: larger with few latents, where there are often several modes.

        There a Newton step costs no more than a few gradients; with more latents the search starts from the encoder's
        covariance instead.
        """
        few = latents <= FEW_LATENTS
        if self.search == "wide":
            return Effort(((33, 9), (8, 18), (3, 20)), int(few))
        if few:
            return Effort(((6, 2),), 1, START_WINDOW, self.probed_axes)
        return Effort(((2 if latents <= MANY_LATENTS else 1, 6),), probed_axes=self.probed_axes)

    def starts_evaluations(self, vae: VAE, starts: int) -> float:
        """Cost per row of choosing among so many search starts, in decoder evaluations; 0 if none are used."""
        return lookup_evaluations(vae, starts) if self.effort(vae.architecture.latents).starts > 1 else 0.0

    def typical_evaluations(self, vae: VAE, starts: int) -> int:
        """Approximate cost of a row in decoder evaluations, the unit in which work is queued."""
        search = self.effort(vae.architecture.latents).evaluations(vae) + self.starts_evaluations(vae, starts)
        return round(search) + min(self.max_samples, 2 * self.first_samples)
