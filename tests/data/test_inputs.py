"""The door: foreign numbers to float32 rows, and the way to the network's units and back."""

import numpy as np
import pytest

from service.data.inputs import Binary, Grey, InputSpec, Standard
from service.errors import InputError

IMAGE = InputSpec(kind="image", shape=(2, 3), transform=Binary(threshold=127.5, high=255.0))
TABLE = InputSpec(
    kind="table", shape=(2,), columns=("a", "b"), transform=Standard(center=(1.0, -2.0), scale=(2.0, 0.5))
)


def test_flat_and_nested_rows_are_the_same():
    array = np.arange(12).reshape(2, 2, 3)
    np.testing.assert_array_equal(IMAGE.rows(array), IMAGE.rows(array.reshape(2, 6)))


@pytest.mark.parametrize(
    ("spec", "array", "message", "column"),
    [
        (IMAGE, np.zeros((2, 5)), r"the array has shape \(2, 5\), the model reads \(rows, 6\) or \(rows, 2, 3\)", None),
        (IMAGE, np.zeros(6), r"\(6,\)", None),
        (IMAGE, np.array([[0, 0, 0, 256.0, 0, 0]]), "out of range", 3),
        (IMAGE, np.array([[0, 0, -1, 0, 0, 0]]), "out of range", 2),
        (IMAGE, np.array([[0, 0, -1, 0, 0, 0]], dtype=np.int8), "out of range", 2),
        (TABLE, np.array([[0.0, np.nan]]), "cannot be scored", "b"),
        (TABLE, np.array([[np.inf, 0.0]]), "cannot be scored", "a"),
        (TABLE, np.array([[0.0, 1e39]]), "cannot be scored", "b"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_its_place(spec, array, message, column):
    with pytest.raises(InputError, match=message) as raised:
        spec.rows(array)
    if column is not None:
        assert [(fault.row, fault.column) for fault in raised.value.faults] == [(0, column)]


def test_at_most_twenty_faults_are_listed():
    with pytest.raises(InputError) as raised:
        IMAGE.rows(np.full((10, 6), 300.0))
    assert len(raised.value.faults) == 20


def test_units_go_there_and_back():
    rows = np.array([[3.0, -2.5], [1.0, -2.0]], dtype=np.float32)
    np.testing.assert_allclose(TABLE.encode(rows), [[1.0, -1.0], [0.0, 0.0]])
    np.testing.assert_allclose(TABLE.decode(TABLE.encode(rows)), rows)
    assert TABLE.log_abs_det_jacobian(np.zeros((1, 2))).sum(axis=1) == pytest.approx(-np.log(2.0 * 0.5))
    np.testing.assert_array_equal(IMAGE.encode(np.array([[127.0, 127.5, 128.0]])), [[0, 0, 1]])
    np.testing.assert_array_equal(IMAGE.decode(np.array([[0.5, 1.0]])), [[127.5, 255.0]])
    levels = np.arange(256, dtype=np.float32)
    np.testing.assert_allclose(Grey().decode(Grey().encode(levels)), levels, atol=1e-4)


def test_the_largest_numbers_stay_finite():
    assert np.isfinite(TABLE.encode(np.array([[3e38, -3e38]], dtype=np.float32))).all()
