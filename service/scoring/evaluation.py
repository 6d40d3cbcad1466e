"""How well each rule separates valid rows from given sets of invalid rows: false alarms, power, and a recommendation.

Never imported by the running service.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from service.errors import CalibrationError, InputError
from service.scoring.options import RuleName, ScoreOptions
from service.scoring.scorer import Scorer
from service.scoring.scores import Scores

RATES = (0.01, 0.05, 0.1, 0.5)
# Rates that are looked at for the cheapest, with three digits each: as they are told, they are judged.
CANDIDATES = tuple(digits * 10.0**power / 100.0 for power in (-3, -2, -1) for digits in range(100, 1000, 5))


def flagged(scores: Scores, p_values: np.ndarray) -> np.ndarray:
    """P-values by which rows are flagged at a rate: 0 for rows that cannot be read, which always are."""
    return np.where(scores.unreadable, 0.0, p_values)


Measured = Callable[[Scores], np.ndarray]  # scores to p-values, shape (B,)

# Each rule is a threshold on one of these p-values.
RULES: dict[str, Measured] = {
    "band, both sides": lambda scores: flagged(scores, scores.p_value),
    "band, low side": lambda scores: flagged(scores, scores.low_p_value),
    "combined": lambda scores: flagged(scores, scores.combined_p_value),
}
OPTIONS = {
    "band, both sides": "?rule=band&false_alarm=RATE",
    "band, low side": "?rule=band&false_alarm=RATE&tail=low",
    "combined": "?rule=combined&false_alarm=RATE",
}


@dataclass(frozen=True, slots=True)
class RuleOnSet:
    """How a rule does on one set of invalid rows.

    At each of RATES, `caught` is the share of invalid rows that it flags, and `alarms` the share of valid ones. `auroc` and
    `auprc` rank rows by the rule's p-values, `p_valid` (B,) and `p_invalid` (N,).
    """

    rule: str
    name: str
    alarms: tuple[float, ...]
    caught: tuple[float, ...]
    auroc: float
    auprc: float
    p_valid: np.ndarray = field(repr=False)
    p_invalid: np.ndarray = field(repr=False)


def evaluated(scorer: Scorer, valid: np.ndarray, invalid: dict[str, np.ndarray]) -> list[RuleOnSet]:
    """Evaluate every rule that the model supports on each set of invalid rows.

    Args:
        valid: valid rows that the model has not seen, as read for it, shape (B, D + C).
        invalid: sets of invalid rows by name, each (N, D + C).
    """
    can_combine = scorer.calibration.statistics is not None
    rules = [rule for rule in RULES if can_combine or rule != "combined"]
    options = ScoreOptions("combined" if can_combine else "band")
    good = scorer.score_read(valid, options)
    results = []
    for name, rows in invalid.items():
        bad = scorer.score_read(rows, options)
        for rule in rules:
            p_valid, p_invalid = RULES[rule](good), RULES[rule](bad)
            auroc, auprc = ranking(p_valid, p_invalid)
            at_rates = shares(p_valid), shares(p_invalid)
            results.append(RuleOnSet(rule, name, *at_rates, auroc, auprc, p_valid, p_invalid))
    return results


@dataclass(frozen=True, slots=True)
class Costs:
    """What a missed invalid row and a refused valid one cost, and the share of rows that are invalid, above 0 and below 1.

    Raises:
        InputError: a cost is not above 0, or the share is not between 0 and 1.
    """

    miss: float
    alarm: float
    prevalence: float

    def __post_init__(self) -> None:
        if not (0 < self.miss < math.inf and 0 < self.alarm < math.inf):
            raise InputError("costs: expected numbers above 0")
        if not 0 < self.prevalence < 1:
            raise InputError("prevalence: expected a share above 0 and below 1")

    def of(self, alarms: float, caught: float) -> float:
        """The cost of a row, in the mean."""
        return self.prevalence * self.miss * (1.0 - caught) + (1.0 - self.prevalence) * self.alarm * alarms


@dataclass(frozen=True, slots=True)
class Cheapest:
    """The rule and the rate of false alarms that cost least; `by_row` is that cost, in the mean of the invalid sets.

    If no rate costs less than accepting every row, `rate` is 0.
    """

    rule: str
    rate: float
    alarms: float
    caught: float
    by_row: float


def cheapest(results: Sequence[RuleOnSet], costs: Costs, allows: Callable[[str, float], bool]) -> Cheapest:
    """The cheapest rule and rate, of those that a version allows (`rates_allowed`).

    Alarms are as many as are promised, or as were seen of the valid rows if these are more; every invalid set counts alike.
    """
    best = Cheapest("", 0.0, 0.0, 0.0, costs.of(0.0, 0.0))
    for rule in dict.fromkeys(one.rule for one in results):
        own = [one for one in results if one.rule == rule]
        for rate in CANDIDATES:
            if not allows(rule, rate):
                continue
            flagged_up_to = rate * (1.0 + 1e-12)
            alarms = max(rate, float((own[0].p_valid <= flagged_up_to).mean()))
            caught = float(np.mean([(one.p_invalid <= flagged_up_to).mean() for one in own]))
            by_row = costs.of(alarms, caught)
            if by_row < best.by_row:
                best = Cheapest(rule, rate, alarms, caught, by_row)
    return best


def rates_allowed(scorer: Scorer) -> Callable[[str, float], bool]:
    """Whether a version allows a rule at a rate: it has enough validation rows."""

    def allows(rule: str, rate: float) -> bool:
        name: RuleName = "combined" if rule == "combined" else "band"
        try:
            scorer.check(ScoreOptions(name, false_alarm=rate, tail="low" if rule == "band, low side" else None))
        except CalibrationError:
            return False
        return True

    return allows


def cost_sentence(best: Cheapest, costs: Costs) -> str:
    """What to do to pay least, in a sentence."""
    nothing = costs.of(0.0, 0.0)
    if not best.rate:
        return f"Accept every row: at {nothing:.4g} a row, no rate of false alarms costs less."
    option = OPTIONS[best.rule].replace("RATE", f"{best.rate:g}")
    return (
        f"Cheapest: `{option}` ({best.rule}), {best.by_row:.4g} a row, where accepting every row costs {nothing:.4g}; it "
        f"catches {100 * best.caught:.1f} % of the invalid rows, in the mean of the sets."
    )


def shares(p_values: np.ndarray) -> tuple[float, ...]:
    """The share of rows flagged at each of RATES."""
    return tuple(float((p_values <= rate * (1.0 + 1e-12)).mean()) for rate in RATES)


def ranking(p_valid: np.ndarray, p_invalid: np.ndarray) -> tuple[float, float]:
    """AUROC, where ties count half, and the area under the precision-recall curve (average precision)."""
    p_values = np.concatenate([p_valid, p_invalid])
    is_invalid = np.repeat([False, True], [len(p_valid), len(p_invalid)])
    distinct, place = np.unique(p_values, return_inverse=True)  # most extreme first
    bad = np.bincount(place, is_invalid, len(distinct))
    good = np.bincount(place, ~is_invalid, len(distinct))
    auroc = float((bad * (len(p_valid) - np.cumsum(good) + 0.5 * good)).sum() / (len(p_valid) * len(p_invalid)))
    precision = np.cumsum(bad) / (np.cumsum(bad) + np.cumsum(good))
    return auroc, float((precision * bad).sum() / len(p_invalid))


def recommendation(results: list[RuleOnSet]) -> str:
    """A sentence that recommends a rule, with the reason."""
    names = list(dict.fromkeys(one.rule for one in results))
    mean = {rule: float(np.mean([one.auroc for one in results if one.rule == rule])) for rule in names}
    worst = {rule: min(one.auroc for one in results if one.rule == rule) for rule in names}
    # A few sets cannot justify preferring a rule by a tiny margin, hence the rounding.
    best = max(names, key=lambda rule: round(mean[rule] + worst[rule], 2))
    weakest = min((one for one in results if one.rule == best), key=lambda one: one.auroc)
    return (
        f"Use `{OPTIONS[best]}` ({best}): mean AUROC over the invalid sets {mean[best]:.3f}, {worst[best]:.3f} on the "
        f"hardest set, {weakest.name}, where "
        + ", ".join(f"{rule} has {one:.3f}" for rule, one in on_set(results, weakest.name, best))
        + "; choose RATE as the share of valid rows that you can afford to refuse."
    )


def on_set(results: list[RuleOnSet], name: str, but: str) -> list[tuple[str, float]]:
    return [(one.rule, one.auroc) for one in results if one.name == name and one.rule != but]
