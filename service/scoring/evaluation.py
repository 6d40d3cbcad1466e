"""How well each rule tells valid rows from invalid ones that somebody has: false alarms, what is caught, which to choose.

Never imported by the running service.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.scoring.scores import Scores

RATES = (0.01, 0.05, 0.1, 0.5)
Measured = Callable[[Scores], np.ndarray]  # scores to p-values, shape (B,)

# Each rule by the p-value that it is a threshold of.
RULES: dict[str, Measured] = {
    "band, both sides": lambda scores: scores.p_value,
    "band, low side": lambda scores: scores.low_p_value,
    "combined": lambda scores: scores.combined_p_value,
}
OPTIONS = {
    "band, both sides": "?false_alarm=RATE",
    "band, low side": "?false_alarm=RATE&tail=low",
    "combined": "?rule=combined&false_alarm=RATE",
}


@dataclass(frozen=True, slots=True)
class RuleOnSet:
    """What a rule makes of an invalid set.

    `caught` is its share of invalid rows, and `alarms` that of valid ones, at each of RATES; `auroc` and `auprc` are of the
    p-values as a ranking.
    """

    rule: str
    name: str
    alarms: tuple[float, ...]
    caught: tuple[float, ...]
    auroc: float
    auprc: float


def evaluated(scorer: Scorer, valid: np.ndarray, invalid: dict[str, np.ndarray]) -> list[RuleOnSet]:
    """Every rule that the model has, on each set of invalid rows.

    Args:
        valid: valid rows that the model has not seen, shape (B, D).
        invalid: sets of invalid rows by name, each (N, D).
    """
    can_combine = scorer.calibration.statistics is not None
    rules = [rule for rule in RULES if can_combine or rule != "combined"]
    options = ScoreOptions("combined" if can_combine else "band")
    good = scorer.score(valid, options)
    results = []
    for name, rows in invalid.items():
        bad = scorer.score(rows, options)
        for rule in rules:
            p_valid, p_invalid = RULES[rule](good), RULES[rule](bad)
            results.append(RuleOnSet(rule, name, shares(p_valid), shares(p_invalid), *ranking(p_valid, p_invalid)))
    return results


def shares(p_values: np.ndarray) -> tuple[float, ...]:
    """The share of rows that each of RATES refuses."""
    return tuple(float((p_values <= rate * (1.0 + 1e-12)).mean()) for rate in RATES)


def ranking(p_valid: np.ndarray, p_invalid: np.ndarray) -> tuple[float, float]:
    """Areas under the curves of receiver operating characteristic and of precision over recall; ties count half."""
    p_values = np.concatenate([p_valid, p_invalid])
    is_invalid = np.repeat([False, True], [len(p_valid), len(p_invalid)])
    distinct, place = np.unique(p_values, return_inverse=True)  # the strangest first
    bad = np.bincount(place, is_invalid, len(distinct))
    good = np.bincount(place, ~is_invalid, len(distinct))
    auroc = float((bad * (len(p_valid) - np.cumsum(good) + 0.5 * good)).sum() / (len(p_valid) * len(p_invalid)))
    precision = np.cumsum(bad) / (np.cumsum(bad) + np.cumsum(good))
    return auroc, float((precision * bad).sum() / len(p_invalid))


def recommendation(results: list[RuleOnSet]) -> str:
    """Which rule to choose, in a sentence with the reason."""
    names = list(dict.fromkeys(one.rule for one in results))
    mean = {rule: float(np.mean([one.auroc for one in results if one.rule == rule])) for rule in names}
    worst = {rule: min(one.auroc for one in results if one.rule == rule) for rule in names}
    # The evidence of a few sets is no reason to prefer what is a hair better.
    best = max(names, key=lambda rule: round(mean[rule] + worst[rule], 2))
    weakest = min((one for one in results if one.rule == best), key=lambda one: one.auroc)
    return (
        f"Take `{OPTIONS[best]}` ({best}): over the invalid sets its AUROC is {mean[best]:.3f} in the mean, and "
        f"{worst[best]:.3f} on the hardest, {weakest.name}, where "
        + ", ".join(f"{rule} has {one:.3f}" for rule, one in on_set(results, weakest.name, best))
        + "; choose RATE as the share of valid rows that you can bear to lose."
    )


def on_set(results: list[RuleOnSet], name: str, but: str) -> list[tuple[str, float]]:
    """The other rules' AUROC on a set."""
    return [(one.rule, one.auroc) for one in results if one.name == name and one.rule != but]
