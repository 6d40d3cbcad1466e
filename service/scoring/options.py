"""Scoring options: one type, into which every interface parses its own syntax once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from service.density.conditionals import KEPT_DRAWS
from service.density.row_statistics import BOUND_DRAWS, OBSERVED_DRAWS
from service.errors import InputError
from service.validity.band import percentiles_of
from service.validity.conformal import LEAST_SHARE, Tail

RuleName = Literal["band", "combined"]
EXPLAINING_EVALUATIONS = 2 * KEPT_DRAWS
STATISTICS_EVALUATIONS = OBSERVED_DRAWS + BOUND_DRAWS


@dataclass(frozen=True, slots=True)
class Detail:
    """What to compute for rows in addition to log p(x): column estimates, and further test statistics."""

    columns: bool = False
    statistics: bool = False


PLAIN = Detail()


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """How to judge rows, and what else to report. `Scorer.check` checks that a version supports it.

    Attributes:
        rule: `band` judges by log p(x); `combined` by several test statistics together, at a false-alarm rate; None: what
            the version was published with (`or_default`).
        percentiles: another band for this call, from the same validation scores.
        false_alarm: the share of valid rows that may be called invalid, instead of percentiles; by default the
            version's, or for the combined rule `scores.USUAL_FALSE_ALARM`.
        tail: for a false-alarm rate of the band, and for `fdr`: `low` flags only unlikely rows, `both` also rows that are
            too likely.
        fdr: mark discoveries so that the expected share of valid rows among them is at most this.
        explain: for each row, name so many of its most suspicious columns.
        maps: also tell the log-likelihood of each pixel (`Scorer.pixel_maps`).
        strict: a cell that cannot be read is an error, instead of making its row invalid.

    Raises:
        InputError: the options contradict each other, or a share is not between 0 and 1.
    """

    rule: RuleName | None = None
    percentiles: tuple[float, float] | None = None
    false_alarm: float | None = None
    tail: Tail | None = None
    fdr: float | None = None
    explain: int = 0
    strict: bool = False
    maps: bool = False

    def __post_init__(self) -> None:
        for name in ("false_alarm", "fdr"):
            share = getattr(self, name)
            if share is not None and not LEAST_SHARE <= share < 1:
                raise InputError(f"{name}: expected a number above 0 and below 1, such as 0.01")
        if self.rule == "combined" and (self.percentiles is not None or self.tail is not None):
            raise InputError("rule combined: takes false_alarm; percentiles and tail belong to the rule band")
        if self.percentiles is not None and self.false_alarm is not None:
            raise InputError("percentiles and false_alarm: expected only one of them")

    def or_default(self, rule: RuleName, false_alarm: float | None) -> ScoreOptions:
        """These options, with a version's rule and rate where they say nothing; percentiles and tail belong to the band."""
        if self.rule is not None:
            return self
        if rule == "band" or self.percentiles is not None or self.tail is not None:
            return replace(self, rule="band")
        return replace(self, rule=rule, false_alarm=self.false_alarm or false_alarm)

    @property
    def default_rule(self) -> tuple[RuleName, float | None]:
        """These options, once they name a rule, as a version's own: the rule, and the rate of the rule combined."""
        return ("combined", self.false_alarm) if self.rule == "combined" else ("band", None)

    @property
    def band_percentiles(self) -> tuple[float, float] | None:
        """The percentiles of the judging band; None for the calibration's default."""
        if self.rule != "combined" and self.false_alarm is not None:
            return percentiles_of(self.false_alarm, self.tail or "both")
        return self.percentiles

    @property
    def detail(self) -> Detail:
        """What has to be computed for the rows."""
        return Detail(self.explain > 0, self.rule == "combined" or self.maps)

    @property
    def extra_evaluations(self) -> int:
        """Cost per row in addition to its score, in decoder evaluations."""
        explaining = EXPLAINING_EVALUATIONS if self.explain else 0
        return explaining + (STATISTICS_EVALUATIONS if self.rule == "combined" or self.maps else 0)


DEFAULT = ScoreOptions()


def parse_percentiles(text: str) -> tuple[float, float]:
    """Parse `1,99` into two numbers; only the calibration can tell whether it supports that band.

    Raises:
        InputError: the text is not two numbers, the second below 100.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if math.isnan(low) or math.isnan(high) or high >= 100:
        raise InputError("percentiles: expected two numbers below 100, such as 1,99")
    return low, high
