"""Whether rows to calibrate on were trained on."""

import stat

import numpy as np
import pytest
from scipy import stats

from service.errors import CalibrationError
from service.scoring.fingerprints import Fingerprints, chance_of_more, of_rows
from service.store.store import Store


def drawn(rows, seed, values=None):
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, 3)) if values is None else random.integers(0, values, (rows, 3)).astype(float)


def fingerprints(train, calibration):
    return Fingerprints.of([train], calibration)


def test_rows_are_known_by_their_values():
    train = drawn(500, 0)
    found = fingerprints(train, drawn(200, 1))
    assert (found.calibration_rows, found.calibration_seen) == (200, 0)
    assert found.seen(train[::-1]) == 500
    assert found.seen(drawn(500, 2)) == 0
    assert found.seen(np.nextafter(train, 9.0)) == 0
    assert len(set(of_rows(train, found.key).tolist()) & set(of_rows(train, b"another key").tolist())) == 0


def test_rows_that_were_trained_on_are_refused_and_others_are_not():
    train = drawn(500, 0)
    found = fingerprints(train, drawn(200, 1))
    with pytest.raises(CalibrationError, match="60 of 260 rows are among those that x@1 was trained on"):
        found.check_unseen(np.concatenate([train[:60], drawn(200, 2)]), "x@1")
    found.check_unseen(drawn(400, 2), "x@1")


def test_rows_that_repeat_by_themselves_are_no_sign():
    for seed in range(50):
        found = fingerprints(drawn(700, 3 * seed, 8), drawn(200, 3 * seed + 1, 8))
        assert found.calibration_seen > 50
        found.check_unseen(drawn(1000, 3 * seed + 2, 8), "x@1")


@pytest.mark.parametrize(
    ("seen", "rows", "others_seen", "others"), [(5, 10, 3, 20), (0, 4, 0, 9), (7, 7, 0, 300), (3, 9, 9, 9)]
)
def test_the_chance_is_fisher_s(seen, rows, others_seen, others):
    exact = stats.fisher_exact([[seen, rows - seen], [others_seen, others - others_seen]], alternative="greater").pvalue
    assert chance_of_more(seen, rows, others_seen, others) == pytest.approx(exact)


def test_they_are_a_file_of_their_own_that_only_its_owner_reads_and_serving_does_not_need(trained_models, tmp_path):
    store = trained_models.store(tmp_path / "store", "people")
    reference = store.resolve("people")
    (file,) = (tmp_path / "store").rglob("fingerprints.safetensors")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    kept = store.fingerprints(reference)
    published = store.load(reference)
    assert kept.calibration_rows == len(published.calibration.scores)
    file.chmod(0)
    assert store.load(reference).digest == published.digest
    file.unlink()
    assert store.load(reference).digest == published.digest
    assert Store(tmp_path / "store").fingerprints(reference) is None
