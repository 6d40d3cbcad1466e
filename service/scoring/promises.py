"""What a version promises at each rate of false alarms, and where its validation rows lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.errors import CalibrationError
from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.scoring.scores import CombinedRule
from service.validity.band import Band
from service.validity.conformal import Acceptance

CURVE_POINTS = 201
# Rates to choose from, about ten to each factor of ten, down to where few versions have the rows for one.
RATES = tuple(
    float(f"{digits}e{power}")
    for power in (-4, -3, -2, -1)
    for digits in ("1", "1.2", "1.5", "2", "2.5", "3", "4", "5", "6", "8")
    if float(f"{digits}e{power}") <= 0.5
)
Judging = Literal["combined", "low", "both"]
BAND_TAILS: tuple[Literal["low", "both"], ...] = ("low", "both")


@dataclass(frozen=True, slots=True)
class Promise:
    """What a rule promises at a rate of false alarms; without a `band`, it is the rule combined."""

    false_alarm: float
    accepted: Acceptance
    rows: int
    band: Band | None = None


def curve(scorer: Scorer) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of the validation rows' log p(x) that can be read: levels and nats, shape (P,) each."""
    readable = scorer.calibration.scores[np.isfinite(scorer.calibration.scores)]
    levels = np.linspace(0.0, 1.0, CURVE_POINTS)
    return levels, np.quantile(readable, levels)


def promises(scorer: Scorer) -> dict[Judging, list[Promise]]:
    """What each rule of a version promises at each rate that its validation rows allow, smallest rate first.

    `low` and `both` are the band, at one rate for unlikely rows, or split between both tails.
    """
    found: dict[Judging, list[Promise]] = {}
    if scorer.calibration.statistics is not None:
        found["combined"] = [one for rate in RATES if (one := combined_promise(scorer, rate)) is not None]
    for tail in BAND_TAILS:
        options = [ScoreOptions("band", false_alarm=rate, tail=tail) for rate in RATES]
        found[tail] = [one for option in options if (one := band_promise(scorer, option)) is not None]
    return found


def combined_promise(scorer: Scorer, rate: float) -> Promise | None:
    """What the rule combined promises at a rate; None if the validation rows are too few for it."""
    try:
        rule = scorer.combined_rule(rate)
        return Promise(rate, accepted(scorer, scorer.band, rule), rule.rows)
    except CalibrationError:
        return None


def band_promise(scorer: Scorer, options: ScoreOptions) -> Promise | None:
    """What a band promises at a rate; None if the validation rows are too few for it."""
    assert options.false_alarm is not None
    try:
        band = scorer.calibration.band(options.band_percentiles)
        return Promise(options.false_alarm, accepted(scorer, band, None), band.rows, band)
    except CalibrationError:
        return None


def accepted(scorer: Scorer, band: Band, rule: CombinedRule | None) -> Acceptance:
    """The share of valid rows that a band or, if given, a rule accepts."""
    grouping = scorer.calibration.grouping(scorer.model.input, band, rule)
    if grouping is not None:
        return grouping.together
    return band.accepted if rule is None else rule.accepted
