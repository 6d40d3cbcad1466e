"""The errors that Vouch raises on purpose, in one tree.

    VouchError
    |- InputError                invalid rows: wrong shape, NaN, unknown column, ...
    |  |- MalformedError         bytes that are not in the declared format
    |  |- MediaTypeError         an unsupported content type
    |  |- NotAcceptableError     no acceptable answer type
    |  `- TooLargeError          more bytes, rows or pixels than allowed
    |- DataError                 a data file that cannot be read or trained on
    |  `- RowError               one of its rows cannot be read
    |- TrainingError             training that failed, such as a fit that diverged
    |- CalibrationError          too few validation rows, or a calibration of another estimator
    |- AccessError               no API key, or an unknown one
    |  `- ScopeError             an API key without the required scope
    |- ModelError                a problem with a model in the store
    |  |- ModelNotFoundError     no such model, version or alias
    |  |- ModelConflictError     already exists, or has changed in the meantime
    |  `- DamagedModelError      missing, truncated, altered or half-written files
    |- JournalError              a journal that is missing, damaged, or of another key
    |  |- NoRecordError          it has no such record
    |  `- AmbiguousRecordError   it has several
    `- UnavailableError          the service cannot answer now
       |- OverloadedError        the queue is full
       `- DeadlineError          the deadline passed

The numerical core raises these and does not know about HTTP. `web/problems.py` maps them to statuses, and
`cli/console.py` to one line and exit status 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


class VouchError(Exception):
    """An error that the caller can fix; its text says what was wrong and what was expected."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One problem in the input: what is wrong, where, and what was expected."""

    message: str
    row: int | None = None
    column: str | int | None = None
    expected: str | None = None


def summary(faults: Sequence[Fault]) -> str:
    """The first fault in one line, and whether there are more."""
    first = faults[0]
    column = "" if first.column is None else f", column {first.column}"
    expected = "" if first.expected is None else f"; expected {first.expected}"
    more = " (and others, see errors)" if len(faults) > 1 else ""
    return f"row {first.row}{column}: {first.message}{expected}{more}"


class InputError(VouchError):
    """Invalid rows. `faults` lists at most 20 problems; no text in it repeats the input."""

    MAX_FAULTS = 20

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults[: self.MAX_FAULTS])

    def after(self, rows: int) -> InputError:
        """The same error, if `rows` rows come before those that it is about."""
        if not rows or not self.faults:
            return self
        faults = [replace(one, row=None if one.row is None else one.row + rows) for one in self.faults]
        message = summary(faults) if str(self) == summary(self.faults) else str(self)
        return type(self)(message, faults)


class MalformedError(InputError):
    """Bytes that are not in the declared format."""


class MediaTypeError(InputError):
    """A request body with an unsupported content type."""


class NotAcceptableError(InputError):
    """The client accepts none of the types that the service can answer with."""


class TooLargeError(InputError):
    """More bytes, rows or pixels than this deployment accepts."""


class DataError(VouchError):
    """A data file that cannot be read or used; the text names the file and the place in it."""


class RowError(DataError):
    """A row that cannot be read: its number, from 0 in what was read, what is wrong, and what was expected."""

    def __init__(self, row: int, problem: str, column: str | int | None = None, expected: str | None = None) -> None:
        self.row, self.problem, self.column, self.expected = row, problem, column, expected
        super().__init__(self.in_place(f"row {row}"))

    def __reduce__(self) -> tuple[type[RowError], tuple[int, str, str | int | None, str | None]]:
        return RowError, (self.row, self.problem, self.column, self.expected)

    def in_place(self, place: str) -> str:
        """The error's text, with the row's place in its file, such as line 12."""
        column = "" if self.column is None else f", column {self.column!r}:"
        return f"{place}{column} {self.problem}" + (f", expected {self.expected}" if self.expected else "")

    def as_input_error(self) -> InputError:
        """The same error, about rows that were sent."""
        fault = Fault(self.problem, self.row, self.column, self.expected)
        return InputError(summary([fault]), [fault])

    def after(self, rows: int) -> RowError:
        """The same error, if `rows` rows come before what was read."""
        return RowError(self.row + rows, self.problem, self.column, self.expected)


def first_fault(error: InputError) -> DataError:
    """Turn an error about the rows of a file into a DataError for its first fault."""
    if not error.faults or error.faults[0].row is None:
        return DataError(str(error))
    fault = error.faults[0]
    assert fault.row is not None
    return RowError(fault.row, fault.message, fault.column, fault.expected)


class TrainingError(VouchError):
    """Training that failed, such as a fit that diverged."""


class CalibrationError(VouchError):
    """Too few validation rows for the requested percentiles, or a calibration of another estimator."""


class AccessError(VouchError):
    """The API key is missing or unknown."""


class ScopeError(AccessError):
    """The API key lacks the scope that this call needs."""


class ModelError(VouchError):
    """A problem with a model in the store."""


class ModelNotFoundError(ModelError):
    """No such model, version or alias."""


class ModelConflictError(ModelError):
    """The version already exists, or the alias has changed since the caller read it."""


class DamagedModelError(ModelError):
    """A model version with a missing, truncated, altered or half-written file."""


class JournalError(VouchError):
    """A journal that is missing or damaged, or whose key is another."""


class NoRecordError(JournalError):
    """The journal has no such record."""


class AmbiguousRecordError(JournalError):
    """More than one record of the journal is meant."""


class UnavailableError(VouchError):
    """The service cannot answer now; `retry_after_s` says when to try again."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverloadedError(UnavailableError):
    """The queue is full."""


class DeadlineError(UnavailableError):
    """The deadline passed before the answer was computed."""
