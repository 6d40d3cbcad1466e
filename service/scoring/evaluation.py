"""How well each rule separates valid rows from given sets of invalid rows: false alarms, power, and a recommendation.

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
    "band, both sides": "?false_alarm=RATE",
    "band, low side": "?false_alarm=RATE&tail=low",
    "combined": "?rule=combined&false_alarm=RATE",
}


@dataclass(frozen=True, slots=True)
class RuleOnSet:
    """How a rule does on one set of invalid rows.

    At each of RATES, `caught` is the share of invalid rows that it flags, and `alarms` the share of valid ones. `auroc` and
    `auprc` rank rows by the rule's p-values.
    """

    rule: str
    name: str
    alarms: tuple[float, ...]
    caught: tuple[float, ...]
    auroc: float
    auprc: float


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
            results.append(RuleOnSet(rule, name, shares(p_valid), shares(p_invalid), *ranking(p_valid, p_invalid)))
    return results


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
