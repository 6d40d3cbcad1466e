"""Everything that a caller can do wrong, in one tree.

    VouchError
    |- InputError                rows that cannot be read: wrong shape, NaN, unknown column, ...
    |  |- MalformedError         bytes that are not what they claim to be
    |  |- MediaTypeError         a content type that is not spoken
    |  |- NotAcceptableError     an answer's type that is not spoken
    |  `- TooLargeError          more bytes, rows or pixels than allowed
    |- DataError                 a data file that cannot be read, or that cannot be trained on
    |  `- RowError               one of its rows cannot be read
    |- TrainingError             a fit that diverged
    |- CalibrationError          too few rows, or thresholds of another estimator
    |- AccessError               no key, a wrong key
    |  `- ScopeError             a key that may not do this
    |- ModelError                about a model in the store
    |  |- ModelNotFoundError     no such model, version or alias
    |  |- ModelConflictError     exists already, or changed under the caller
    |  `- DamagedModelError      missing, truncated, altered or half-written files
    `- UnavailableError          the service cannot answer now
       |- OverloadedError        the queue is full
       `- DeadlineError          the request's time ran out

The numerical core raises these and never hears of HTTP; `web/problems.py` maps them to statuses, `cli.py` to exit codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class VouchError(Exception):
    """Something that the caller can mend; its text says what came and what was expected."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with the input, where it is, and what was expected."""

    message: str
    row: int | None = None
    column: str | int | None = None
    expected: str | None = None


class InputError(VouchError):
    """Rows that cannot be read. `faults` lists at most 20 of what is wrong; no text of it repeats the input."""

    MAX_FAULTS = 20

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults[: self.MAX_FAULTS])


class MalformedError(InputError):
    """Bytes that are not what they claim to be."""


class MediaTypeError(InputError):
    """A request body of a type that is not spoken."""


class NotAcceptableError(InputError):
    """An answer was asked for in a type that is not spoken."""


class TooLargeError(InputError):
    """More bytes, rows or pixels than this deployment accepts."""


class DataError(VouchError):
    """A data file that cannot be read or used; the text names the file and the place."""


class RowError(DataError):
    """A row that cannot be read, counted from 0 in what was read: what is wrong with it, and what was expected."""

    def __init__(self, row: int, problem: str, column: str | int | None = None, expected: str | None = None) -> None:
        place = "" if column is None else f", column {column!r}:"
        super().__init__(f"row {row}{place} {problem}" + (f", expected {expected}" if expected else ""))
        self.row, self.problem, self.column, self.expected = row, problem, column, expected

    def __reduce__(self) -> tuple[type[RowError], tuple[int, str, str | int | None, str | None]]:
        return RowError, (self.row, self.problem, self.column, self.expected)

    def after(self, rows: int) -> RowError:
        """The same row, where so many come before what was read."""
        return RowError(self.row + rows, self.problem, self.column, self.expected)


def first_fault(error: InputError) -> DataError:
    """The first thing that is wrong with the rows of a file."""
    if not error.faults or error.faults[0].row is None:
        return DataError(str(error))
    fault = error.faults[0]
    assert fault.row is not None
    return RowError(fault.row, fault.message, fault.column, fault.expected)


class TrainingError(VouchError):
    """A fit that diverged."""


class CalibrationError(VouchError):
    """Too few validation rows for the percentiles asked, or thresholds that belong to another estimator."""


class AccessError(VouchError):
    """No API key, or one that is not known."""


class ScopeError(AccessError):
    """An API key without the scope that this call needs."""


class ModelError(VouchError):
    """About a model in the store."""


class ModelNotFoundError(ModelError):
    """No such model, version or alias."""


class ModelConflictError(ModelError):
    """The version exists already, or the alias changed since the caller looked."""


class DamagedModelError(ModelError):
    """A model version with a missing, truncated, altered or half-written file."""


class UnavailableError(VouchError):
    """The service cannot answer now; `retry_after_s` says when to try again."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverloadedError(UnavailableError):
    """The queue is full."""


class DeadlineError(UnavailableError):
    """The request's time ran out before it was computed."""
