"""The estimator's settings: how log p(x) is estimated, and when a row has enough draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from service.density.laplace import FEW_LATENTS
from service.density.quasirandom import REPLICATES
from service.density.search import EVERY_AXIS, Effort
from service.density.starts import MANY_LATENTS, lookup_evaluations
from service.errors import CalibrationError
from service.vae.network import VAE

MAX_SAMPLES = 2**17
TYPICAL_SAMPLES = 128
START_WINDOW = 50.0  # nats below the best start


SettingName = Literal["fast", "standard", "thorough"]
SearchName = Literal["narrow", "wide"]
SETTINGS: tuple[SettingName, ...] = get_args(SettingName)


@dataclass(frozen=True, slots=True)
class Estimator:
    """How log p(x) is estimated. Thresholds hold only for the estimator that they were fitted with.

    Stored in the card as it stands; equal fields give equal scores.

    A row's samples double from `first_samples` until its standard error is at most `tolerance` nats, or its interval is
    clear of the ends of the band that it is judged by, or `max_samples` are drawn (after a wide search, twice as many as
    before it). Rows that no band judges yet, those that a band is fitted to, go by `ends`: those of a pilot band, from rows
    that serve for nothing else. The rows that are judged later must be clear of them, too, or known to END_TOLERANCE. From
    the pilot rows, too, come `typical_error`, the standard error of a usual row's estimate from TYPICAL_SAMPLES draws, and
    `typical_decay`, the power of the number of draws by which its square falls.
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
            raise CalibrationError("tolerance is no number of nats of at least 0")

    @staticmethod
    def of(setting: SettingName) -> Estimator:
        """The estimator of a setting, without ends to stop at."""
        match setting:
            case "fast":
                return Estimator("fast", first_samples=64, max_samples=64, anneal=False)
            case "standard":
                return Estimator("standard")
            case "thorough":
                return Estimator(
                    "thorough", tolerance=0.02, first_samples=256, max_samples=16384, probed_axes=EVERY_AXIS
                )
        raise CalibrationError(f"estimator {setting!r} is not known, expected one of {', '.join(SETTINGS)}")

    @property
    def stops_at_ends(self) -> bool:
        """Whether a row's samples stop doubling once its verdict is certain: then it needs the ends of a band."""
        return self.setting == "standard"

    def typical_variance(self, samples: int) -> float:
        """The square of the standard error of a usual row's estimate from so many draws."""
        decay: float = (samples / TYPICAL_SAMPLES) ** -self.typical_decay
        return self.typical_error**2 * decay

    def effort(self, latents: int) -> Effort:
        """What the search for a row's modes may cost: with few latents there often are several.

        There Newton's step costs no more than some gradients; elsewhere the encoder's covariance will do to begin with.
        """
        few = latents <= FEW_LATENTS
        if self.search == "wide":
            return Effort(((33, 9), (8, 18), (3, 20)), int(few))
        if few:
            return Effort(((6, 2),), 1, START_WINDOW, self.probed_axes)
        return Effort(((2 if latents <= MANY_LATENTS else 1, 6),), probed_axes=self.probed_axes)

    def starts_evaluations(self, vae: VAE, codes: int) -> float:
        """What it costs a row to look for starts among K latents, in decoder evaluations, where it does."""
        return lookup_evaluations(vae, codes) if self.effort(vae.architecture.latents).starts > 1 else 0.0

    def typical_evaluations(self, vae: VAE, codes: int) -> int:
        """What a row costs, about, in decoder evaluations: the unit in which work is queued."""
        search = self.effort(vae.architecture.latents).evaluations(vae) + self.starts_evaluations(vae, codes)
        return round(search) + min(self.max_samples, 2 * self.first_samples)
