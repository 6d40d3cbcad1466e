"""Why a row is invalid, and by which rule it is judged if nobody names one."""

from dataclasses import replace

import numpy as np
import pytest

from service.errors import CalibrationError, InputError
from service.scoring.options import ScoreOptions
from service.scoring.reasons import PHRASES, by_band, one_in, share
from service.scoring.scorer import Scorer
from service.scoring.statistic_kinds import STATISTICS
from service.scoring.tables import score_lists


@pytest.mark.parametrize("rule", ["band", "combined"])
def test_every_invalid_row_has_a_reason_and_no_valid_one_has(any_scorer, rule):
    scorer, rows = any_scorer
    scores = scorer.score(rows[:80], ScoreOptions(rule, false_alarm=0.3))
    reasons = scores.reasons()
    assert [reason is None for reason in reasons] == scores.valid.tolist()
    assert not scores.valid.all()
    names, listed = score_lists(scores)
    assert [row[names.index("reason")] for row in listed] == reasons
    explained = scorer.score(rows[:80], ScoreOptions(rule, false_alarm=0.3, explain=1))
    for row, (plain, longer) in enumerate(zip(reasons, explained.reasons(), strict=True)):
        assert (plain is None) == (longer is None)
        if plain is None:
            continue
        cell, low, high = explained.cells[row, 0], explained.expected_low[row, 0], explained.expected_high[row, 0]
        is_as_expected = cell == explained.expected[row, 0] if np.isnan(low) else low <= cell <= high
        assert longer == plain if is_as_expected else longer.startswith(f"{plain}; most suspicious: ")


def test_every_statistic_has_a_phrase():
    assert set(PHRASES) == {"log_likelihood", "violations", *(one.name for one in STATISTICS)}


def test_shares_are_told_in_words():
    assert one_in(0.0002) == "1 in 5,000 valid rows"
    assert one_in(1 / 5001, ranked=(2500, 5000)) == "none of the 5,000 valid rows"
    assert one_in(2 / 5001, ranked=(2500, 5000)) == "1 in 2,500 valid rows"
    assert one_in(0.8) == "80 % of valid rows"
    assert share(99.97) == "99.970 % of valid rows"
    assert by_band(0.2, -1) == "less likely than 99.80 % of valid rows"
    assert by_band(100.0, 1).startswith("more likely than every valid row that it was compared with")


def judged_by(scorer, **fields):
    card = scorer.published.card
    calibration = card.calibration.model_copy(update=fields)
    return Scorer(replace(scorer.published, card=card.model_copy(update={"calibration": calibration})))


def test_a_version_judges_by_its_own_rule_unless_asked_for_another(any_scorer):
    scorer, rows = any_scorer
    own, rows = judged_by(scorer, rule="combined", false_alarm=0.2), rows[:60]
    assert scorer.score(rows).rule is None
    assert own.score(rows).rule.false_alarm == 0.2
    assert own.score(rows, ScoreOptions(false_alarm=0.3)).rule.false_alarm == 0.3
    for options in (ScoreOptions("band"), ScoreOptions(percentiles=(5, 95)), ScoreOptions(false_alarm=0.1, tail="low")):
        assert own.score(rows, options).rule is None
        assert (own.score(rows, options).valid == scorer.score(rows, options).valid).all()
    assert (own.score(rows).valid == scorer.score(rows, ScoreOptions("combined", false_alarm=0.2)).valid).all()


def test_a_draft_cannot_judge_by_a_rate_that_it_does_not_allow(any_scorer):
    from service.scoring.version import Draft

    published = any_scorer[0].published
    draft = Draft(published.model, published.calibration, {}, {})
    assert draft.judging("combined", 0.2).card(published.reference).calibration.rule == "combined"
    with pytest.raises(CalibrationError, match="needs at least"):
        draft.judging("combined", 1e-6)
    with pytest.raises(CalibrationError, match="more validation rows"):
        replace(draft, calibration=replace(draft.calibration, statistics=None)).judging("combined")


def test_the_rule_combined_has_no_percentiles():
    with pytest.raises(InputError, match="belong to the rule band"):
        ScoreOptions("combined", percentiles=(1, 99))
    assert ScoreOptions().or_default("combined", 0.05) == ScoreOptions("combined", false_alarm=0.05)
    assert ScoreOptions("band").or_default("combined", 0.05) == ScoreOptions("band")
    assert np.isclose(ScoreOptions(false_alarm=0.1).or_default("combined", 0.05).false_alarm, 0.1)
