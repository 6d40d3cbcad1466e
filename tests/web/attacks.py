"""Bodies that no endpoint can read, each with the status that it is refused with."""

import io
import json

import numpy as np

from tests.models import ROWS, digits
from tests.tools import npy


def instances(*rows):
    return json.dumps({"instances": list(rows)})


BAD = ROWS[0][:-1]
SECRET = "s3cr3t"
JSON_BODIES = {
    "empty": ("", 400),
    "text": (SECRET, 400),
    "half": ('{"instances": [[1, 2', 400),
    "deep": ('{"instances": ' + "[" * 100_000 + "]" * 100_000 + "}", 413),
    "not UTF-8": (b'{"instances": [["\xff\xfe"]]}', 400),
    "a list": ("[[1, 2]]", 422),
    "null": ("null", 422),
    "a number": ("7", 422),
    "no instances": ("{}", 422),
    "another field": ('{"instances": [], "' + SECRET + '": 1}', 422),
    "instances of text": ('{"instances": "' + SECRET + '"}', 422),
    "no rows": (instances(), 422),
    "an empty row": (instances([]), 422),
    "an empty nested row": (instances([[]]), 422),
    "too few numbers": (instances(BAD), 422),
    "too many numbers": (instances([*ROWS[0], 1]), 422),
    "ragged": (instances(ROWS[0], BAD), 422),
    "ragged lines": (instances([[1] * 8] * 7 + [[1] * 9]), 422),
    "too deep": (instances([[[1] * 8] * 8]), 422),
    "a row that is a number": (instances(7), 422),
    "NaN": (instances([float("nan"), *BAD]), 422),
    "Infinity": (instances([float("inf"), *BAD]), 422),
    "-Infinity": (instances([float("-inf"), *BAD]), 422),
    "1e39": (instances([1e39, *BAD]), 422),
    "1e400": (instances(BAD).replace("[[", "[[1e400, ", 1), 422),
    "a huge integer": (instances([10**400, *BAD]), 422),
    "a boolean": (instances([True, *BAD]), 422),
    "a string": (instances([SECRET, *BAD]), 422),
    "a number as a string": (instances(["2", *BAD]), 422),
    "null in a row": (instances([None, *BAD]), 422),
    "an object in a row": (instances([{SECRET: 1}, *BAD]), 422),
    "a list in a row": (instances([[1], *BAD]), 422),
    "a pixel of 256": (instances([256, *BAD]), 422),
    "a pixel of -1": (instances([-1, *BAD]), 422),
    "an object for a model without names": (instances({SECRET: 1}), 422),
    "many wrong cells": (instances(*([[SECRET] * 64] * 100)), 422),
}

GOOD = npy(digits()[:2])
PICKLED = npy(np.array([{"a": SECRET}], dtype=object), allow_pickle=True)


def npy_that_claims(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"shape": shape, "fortran_order": False, "descr": "<f8"})
    return buffer.getvalue() + b"0" * 512


NPY_BODIES = {
    "empty": (b"", 400),
    "no npy": (SECRET.encode(), 400),
    "truncated": (GOOD[:-5], 400),
    "truncated header": (GOOD[:30], 400),
    "longer than it says": (GOOD + b"1", 400),
    "pickled": (PICKLED, 400),
    "a shape that is code": (GOOD.replace(b"(2, 8, 8)", b"(9**9,64)"), 400),
    "a header that is not closed": (GOOD.replace(b"(2, 8, 8)", b"(2, 8, 8,"), 400),
    "a huge shape": (npy_that_claims((10**12, 64)), 400),
    "a negative shape": (npy_that_claims((-1, 64)), 400),
    "two negative lengths": (npy_that_claims((-1, -64)), 400),
    "a boolean length": (npy_that_claims((True, 64)), 400),
    "a hundred dimensions": (npy_that_claims((1,) * 100 + (64,)), 400),
    "a header of Python 2": (GOOD.replace(b"(2, 8, 8)", b"(2L,8, 8)"), 400),
    "text": (npy(np.array([[SECRET]])), 422),
    "complex": (npy(np.zeros((2, 64), dtype=complex)), 422),
    "booleans": (npy(np.zeros((2, 64), dtype=bool)), 422),
    "structured": (npy(np.zeros(2, dtype=[("a", "f4")])), 422),
    "no rows": (npy(np.zeros((0, 64))), 422),
    "a scalar": (npy(np.float64(3.0)), 422),
    "another shape": (npy(np.zeros((2, 65))), 422),
    "NaN": (npy(np.full((1, 64), np.nan)), 422),
    "infinity": (npy(np.full((1, 64), -np.inf)), 422),
    "1e39": (npy(np.full((1, 64), 1e39)), 422),
    "a pixel of 300": (npy(np.full((1, 64), 300)), 422),
}
