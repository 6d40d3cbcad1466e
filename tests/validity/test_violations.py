"""The p-value of violations and missing cells, beside ten naive lines."""

import math

import numpy as np
import pytest

from service.validity.conformal import places_refused
from service.validity.violations import ViolationReference


def naive(calibration, row, lowest=0):
    """By counting all rows, the new one among them, for each of them."""
    everyone = [*calibration, row]

    def surprise(given, at_row):
        one = given[at_row]
        product = sum(math.log(sum(other[at] == code for other in given) / len(given)) for at, code in enumerate(one))
        alike = sum(np.array_equal(other, one) for at, other in enumerate(given) if at != at_row) / len(given)
        return -max(product, math.log(alike) if alike else -math.inf)

    shares = []
    for keep in (lambda code: code > 2, lambda code: code == 2):
        given = [np.where(keep(one), one, 0) for one in everyone]
        found = [surprise(given, at) for at in range(len(given))]
        shares.append([sum(other >= one - 1e-9 for other in found) / len(found) for one in found])
    strange = [(min(violated, missing), violated) for violated, missing in zip(*shares, strict=True)]
    at_least = sum(one <= strange[-1] for one in strange[:-1])
    return (1 + lowest + at_least) / (len(everyone) + lowest)


def codes(rows, seed, shares=(0.88, 0.06, 0.04, 0.02)):
    return np.random.default_rng(seed).choice([0, 2, 4, 7], size=(rows, 4), p=shares).astype(np.uint8)


@pytest.mark.parametrize("lowest", [0, 3])
def test_it_is_the_share_of_rows_that_are_as_strange_the_row_itself_among_them(lowest):
    calibration = codes(60, 0)
    given = np.concatenate([calibration, np.full((lowest, 4), 9, np.uint8)])
    reference = ViolationReference.of(given, np.arange(60 + lowest) >= 60)
    assert reference.rows == 60 + lowest
    for row in [*codes(30, 1), *codes(20, 2, (0.2, 0.3, 0.3, 0.2)), np.array([0, 0, 9, 0], np.uint8)]:
        assert reference.p_value(row) == pytest.approx(naive(calibration, row, lowest))


def test_no_row_is_stranger_than_one_that_ranks_below_every_number():
    reference = ViolationReference.of(codes(50, 0), np.arange(50) < 2)
    p_values = reference.p_values(codes(4, 1), np.array([True, False, True, False]))
    assert p_values[0] == p_values[2] == 3 / 51
    assert (p_values[[1, 3]] > 3 / 51).all()


def test_usual_rows_are_not_strange_and_a_violation_that_none_had_is_the_strangest():
    reference = ViolationReference.of(np.zeros((199, 3), np.uint8), np.zeros(199, dtype=bool))
    rows = np.array([[0, 0, 0], [0, 5, 0]], np.uint8)
    assert reference.p_values(rows, np.zeros(2, dtype=bool)).tolist() == [1.0, 1 / 200]


def test_cells_that_are_missing_together_surprise_no_more_than_they_do_together():
    together = np.zeros((100, 5), np.uint8)
    together[:10] = 2
    reference = ViolationReference.of(together, np.zeros(100, dtype=bool))
    assert reference.p_value(np.full(5, 2, np.uint8)) == pytest.approx(11 / 101)
    assert reference.p_value(np.array([2, 2, 0, 2, 2], np.uint8)) == pytest.approx(1 / 101)


@pytest.mark.parametrize(("columns", "share"), [(10, 0.03), (20, 0.2), (40, 0.05)])
def test_a_violation_is_seen_however_cells_are_missing_elsewhere(columns, share):
    random = np.random.default_rng(0)
    holes = np.where(random.random((1_000, columns)) < share, 2, 0).astype(np.uint8)
    reference = ViolationReference.of(holes, np.zeros(1_000, dtype=bool))
    for row in np.where(random.random((20, columns)) < share, 2, 0).astype(np.uint8):
        row[0] = 10
        assert reference.p_value(row) == 1 / 1_001
    assert reference.p_value(np.full(columns, 2, np.uint8)) <= 2 / 1_001


def test_valid_rows_get_a_small_p_value_no_more_often_than_it_says():
    """Rows that violate domains as valid rows do, at a rate of some per cent, in columns that are missing together."""
    random = np.random.default_rng(0)

    def drawn(rows):
        found = (random.random((rows, 6)) < 0.02) * random.integers(2, 6, (rows, 6))
        block = random.random(rows) < 0.1
        found[block, :3] = 2
        return found.astype(np.uint8)

    levels = np.array([0.01, 0.02, 0.05, 0.1, 0.3])
    found = []
    for _ in range(60):
        reference = ViolationReference.of(drawn(150), np.zeros(150, dtype=bool))
        found.append((reference.p_values(drawn(200), np.zeros(200, dtype=bool))[:, None] <= levels).mean(axis=0))
    rates, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(60)
    assert (rates <= levels + 4 * error).all(), rates


@pytest.mark.parametrize("ties", [1, 7])
def test_places_are_counted_as_a_new_value_is_judged(ties):
    """A value is refused if at most rank - 1 others are as high; with ties none or all of the equal ones are."""
    random = np.random.default_rng(0)
    values = np.sort(np.repeat(random.normal(size=20), ties))
    for rank in range(1, len(values)):
        asked = np.sort(np.concatenate([values, values + 1e-6, values - 1e-6]))
        refused = asked[(values[None] >= asked[:, None]).sum(axis=1) + 1 <= rank]
        above = 0 if not len(refused) else int((values >= refused.min()).sum())
        assert above <= places_refused(values, rank) - 1 + (0 if len(refused) else 1)
        if ties == 1:
            assert places_refused(values, rank) == rank
    assert places_refused(np.array([1.0, 2.0, np.inf, np.inf]), 1) == 2
    assert places_refused(np.array([1.0, 2.0, 3.0]), 0) == 0
