"""What people say: whom they are asked about, how answers are read, and what they tell of rates."""

import numpy as np
import pytest
from scipy import stats

from service.errors import AmbiguousRecordError, JournalError, NoRecordError
from service.journal.feedback import (
    Realised,
    clopper_pearson,
    found,
    found_by_request,
    kept_rows,
    picked,
    random_share,
    reviews,
    worth,
)
from service.journal.maintenance import erased


def rows(number, seed=0):
    return np.random.default_rng(seed).normal(size=(number, 3))


def test_the_interval_is_that_of_clopper_and_pearson():
    for hits, trials in ((0, 1), (0, 50), (1, 50), (25, 50), (49, 50), (50, 50), (7, 900), (1, 1)):
        expected = stats.binomtest(hits, trials).proportion_ci(0.95, "exact")
        assert clopper_pearson(hits, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_unsure_rows_count_both_ways():
    """Whichever of them are valid, the interval contains the one that knowing would give."""
    labels = ["valid"] * 90 + ["unsure"] * 6 + ["invalid"] * 4
    refused = [at < 3 for at in range(90)] + [True] * 4 + [False] * 2 + [True] * 4
    low, high = Realised.of(labels, refused).interval
    for refused_are_valid in range(5):
        for accepted_are_valid in range(3):
            known = clopper_pearson(3 + refused_are_valid, 90 + refused_are_valid + accepted_are_valid)
            assert low <= known[0] + 1e-12
            assert known[1] <= high + 1e-12
    assert Realised.of(labels, refused).rate == pytest.approx(3 / 90)


def test_the_last_answer_of_each_counts_and_those_who_disagree_are_unsure(journal):
    ids = journal.scores(rows(4))
    journal.ask(ids[:2], ids[2:3])
    journal.answer(ids[0], "valid", "ann")
    journal.answer(ids[0], "invalid", "ann")
    journal.answer(ids[1], "valid", "ann")
    journal.answer(ids[1], "invalid", "bob")
    journal.answer(ids[3], "invalid", "bob")
    with journal.open() as database:
        known = {one.id: one for one in reviews(database, "table")}
    assert [known[one].label for one in ids] == ["invalid", "unsure", None, "invalid"]
    assert [known[one].drawn for one in ids] == [True, True, False, False]
    assert [known[one].asked for one in ids] == [True, True, True, False]
    assert len(known) == 4


def test_rows_are_drawn_whatever_their_verdicts_and_nobody_is_asked_twice(journal):
    generator = np.random.default_rng(1)
    all_ids, refused = [], set()
    for batch in range(20):
        valid = generator.random(50) > 0.2
        ids = journal.scores(rows(50, batch), generator.random(50), valid)
        all_ids += ids
        refused |= {one for one, fine in zip(ids, valid, strict=True) if not fine}
    journal.scores(rows(50, 99), model="other@1")
    drawn = []
    for turn in range(3):
        with journal.open() as database:
            asked = picked(database, "table", 200, 5, generator)
        assert asked.among == 1000 - 200 * turn
        assert len(asked.drawn) == 200
        assert len(asked.others) == 5
        assert not set(asked.drawn) & set(asked.others)
        journal.ask(asked.drawn, asked.others)
        drawn += asked.drawn
    assert len(set(drawn)) == 600
    assert set(drawn) <= set(all_ids)
    share = np.mean([one in refused for one in drawn])
    assert abs(share - len(refused) / 1000) < 4 * np.sqrt(0.16 / 600)
    with journal.open() as database:
        rest = picked(database, "table", 1000, 0, generator)
        assert len(rest.drawn) == 400
        with pytest.raises(JournalError, match="no verdict of model"):
            picked(database, "nothing", 1, 0, generator)


def test_each_row_is_as_likely_to_be_drawn_as_any_other(journal):
    ids = [*journal.scores(rows(2)), *journal.scores(rows(30)), *journal.scores(rows(8))]
    counts = dict.fromkeys(ids, 0)
    generator = np.random.default_rng(0)
    with journal.open() as database:
        for _ in range(400):
            for one in picked(database, "table", 10, 0, generator).drawn:
                counts[one] += 1
    _, p_value = stats.chisquare(list(counts.values()))
    assert p_value > 1e-4


def test_if_rows_are_kept_only_those_are_drawn_that_were_not_erased(journal):
    ids = journal.scores(rows(100), kept=list(range(0, 100, 2)))
    with journal.open() as database:
        erased(database, [ids[0], ids[2]], None, None)
        asked = picked(database, "table", 100, 0, np.random.default_rng(0))
        assert set(asked.drawn) == set(ids[4::2])
        assert random_share(database, "table", 0) == ids[4::2]


def test_most_worth_asking_about_are_uncertain_and_close_verdicts(journal):
    ids = journal.scores(rows(4), [0.9, 0.011, 1e-9, 0.3])
    with journal.open() as database:
        assert picked(database, "table", 0, 2, np.random.default_rng(0)).others == [ids[1], ids[3]]
        content = found(database, ids[0]).content
    assert worth(content) == pytest.approx(np.abs(np.log(np.array([0.9, 0.011, 1e-9, 0.3]) / 0.01)))


def test_a_request_id_names_a_row_only_if_it_names_one(journal):
    one = journal.scores(rows(1), request="single")
    several = journal.scores(rows(3), request="several")
    journal.scores(rows(1), request="twice")
    journal.scores(rows(1), request="twice")
    with journal.open() as database:
        assert str(found_by_request(database, "single").id) == one[0]
        assert str(found_by_request(database, "several", 2).id) == several[2]
        for request in ("several", "twice"):
            with pytest.raises(AmbiguousRecordError, match="record"):
                found_by_request(database, request)
        for request, row in (("none", None), ("several", 3)):
            with pytest.raises(NoRecordError):
                found_by_request(database, request, row)


def test_rows_are_kept_to_the_bit_and_those_of_another_input_are_counted(journal):
    given = np.array([[1.5, np.nan, -0.0], [2.0, 3.0, 4.0]], np.float32)
    ids = [*journal.scores(given), *journal.scores(rows(1), kept=[])]
    with journal.open() as database:
        kept = kept_rows(database, ids, "input", 3)
        assert kept.rows.dtype == np.float32
        assert kept.rows.tobytes() == np.array([[1.5, np.nan, 0.0], [2.0, 3.0, 4.0]], np.float32).tobytes()
        assert kept.lacking == 1
        assert kept_rows(database, ids, "another", 3).lacking == 3


def test_rows_that_were_asked_about_for_their_verdict_are_drawn_as_well(journal):
    """Else the rest would have other verdicts than all."""
    ids = journal.scores(rows(100), np.where(np.arange(100) < 20, 0.01, 0.9))
    with journal.open() as database:
        others = picked(database, "table", 0, 20, np.random.default_rng(0)).others
        assert set(others) == set(ids[:20])
    journal.ask([], others)
    with journal.open() as database:
        assert set(picked(database, "table", 100, 20, np.random.default_rng(0)).drawn) == set(ids)
        assert picked(database, "table", 0, 20, np.random.default_rng(0)).others != others


def test_a_draw_is_whole_after_most_rows_were_erased(journal):
    ids = journal.scores(rows(2000))
    with journal.open() as database:
        erased(database, ids[:1900], None, None)
        asked = picked(database, "table", 50, 10, np.random.default_rng(0))
    assert (len(asked.drawn), len(asked.others), asked.among) == (50, 10, 100)


def test_rows_of_a_larger_share_are_not_likelier_to_be_drawn(journal):
    """2,000 rows of which a tenth were kept, then 2,000 of which all were: equally many of both in a draw."""
    generator = np.random.default_rng(5)
    early = [
        one
        for batch in range(20)
        for one in journal.scores(rows(100, batch), kept=generator.permutation(100)[:10].tolist())
    ]
    for batch in range(20):
        journal.scores(rows(100, 50 + batch))
    with journal.open() as database:
        counts = [
            len(set(picked(database, "table", 100, 0, np.random.default_rng(seed)).drawn) & set(early))
            for seed in range(30)
        ]
        share = random_share(database, "table", 0)
    assert abs(np.mean(counts) - 50) < 4 * np.std(counts) / np.sqrt(30) + 2
    assert 250 < len(share) < 550


def test_requests_of_other_models_do_not_exist_for_whoever_may_not_use_them(journal):
    journal.scores(rows(1), request="both", model="other@1")
    mine = journal.scores(rows(1), request="both")
    with journal.open() as database:
        assert str(found_by_request(database, "both", None, lambda name: name == "table").id) == mine[0]
        with pytest.raises(NoRecordError):
            found_by_request(database, "both", None, lambda name: False)
