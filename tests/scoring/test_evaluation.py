"""`vouch evaluate`: its areas are scikit-learn's, its shares are counts, and it says which rule to take."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from service.scoring.evaluation import RATES, RULES, RuleOnSet, evaluated, ranking, recommendation
from service.scoring.options import ScoreOptions
from tests.models import digits
from tests.tools import vouch


@pytest.mark.parametrize("digits_after_point", [1, 6])
def test_areas_are_those_of_scikit_learn(digits_after_point):
    generator = np.random.default_rng(0)
    valid, invalid = (np.round(generator.random(n) ** power, digits_after_point) for n, power in ((300, 1), (170, 2)))
    labels, strangeness = np.repeat([0, 1], [300, 170]), -np.concatenate([valid, invalid])
    auroc, auprc = ranking(valid, invalid)
    assert auroc == pytest.approx(roc_auc_score(labels, strangeness))
    assert auprc == pytest.approx(average_precision_score(labels, strangeness))


NONE = np.zeros(0)


def test_every_rule_is_judged_on_every_set(digit_scorer):
    sets = {"inverted": 255 - digits()[:50], "blank": np.zeros((50, 8, 8))}
    read = {name: digit_scorer.read(rows) for name, rows in sets.items()}
    results = evaluated(digit_scorer, digit_scorer.read(digits()[:100]), read)
    assert [(one.name, one.rule) for one in results] == [(name, rule) for name in sets for rule in RULES]
    scores = digit_scorer.score(digits()[:100], ScoreOptions("combined"))
    assert results[2].alarms == tuple((scores.combined_p_value <= rate).mean() for rate in RATES)
    blank = {one.rule: one for one in results if one.name == "blank"}
    assert blank["combined"].auroc > 0.9
    assert recommendation(results).startswith("Use `")


def test_a_simpler_rule_is_recommended_where_it_does_as_well():
    results = [
        RuleOnSet(rule, "x", (0,) * 4, (1,) * 4, 0.9 + 0.001 * at, 0.9, NONE, NONE) for at, rule in enumerate(RULES)
    ]
    assert recommendation(results).startswith("Use `?rule=band&false_alarm=RATE` (band, both sides)")


def test_the_command_prints_and_draws(tiny_store, tmp_path):
    np.save(tmp_path / "valid.npy", digits()[:60])
    np.save(tmp_path / "inverted.npy", 255 - digits()[:60])
    options = ["--store", str(tiny_store), "--model", "digits", "--valid", str(tmp_path / "valid.npy")]
    refused = vouch("evaluate", *options, "--invalid", f"inverted={tmp_path / 'inverted.npy'}")
    assert refused.returncode == 2
    assert "of 60 rows are among those that digits@1 was trained on" in refused.stderr
    options += ["--trained-rows", "allow"]
    done = vouch(
        "evaluate", *options, "--invalid", f"inverted={tmp_path / 'inverted.npy'}", "--picture", str(tmp_path / "p.png")
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("inverted") >= 3
    assert "Use `" in done.stdout
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    for bad in ("inverted", f"=x{tmp_path}", f"a={tmp_path / 'nothing.npy'}"):
        failed = vouch("evaluate", *options, "--invalid", bad)
        assert failed.returncode == 2
        assert len(failed.stderr.strip().splitlines()) == 1


def test_the_tail_of_a_rate_is_the_one_that_was_asked_for(tiny_store, tmp_path):
    np.save(tmp_path / "valid.npy", digits()[:20])
    options = ["--store", str(tiny_store), "--model", "digits", "--false-alarm", "0.1"]
    low = vouch("score", tmp_path / "valid.npy", *options, "--tail", "low")
    assert low.returncode == 0, low.stderr
    assert "band from " in low.stderr
    assert "above" not in low.stdout
    assert " to " in vouch("score", tmp_path / "valid.npy", *options).stderr
