"""What the service answers, as arrays or objects, and the errors that its problem documents stand for."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from service import errors

TOO_LATE = "the deadline passed before the service answered"
PROBLEM = "urn:vouch:problem:"
ERRORS: dict[str, type[errors.VouchError]] = {
    "malformed-body": errors.MalformedError,
    "unsupported-media-type": errors.MediaTypeError,
    "not-acceptable": errors.NotAcceptableError,
    "too-large": errors.TooLargeError,
    "invalid-input": errors.InputError,
    "invalid-percentiles": errors.CalibrationError,
    "forbidden": errors.ScopeError,
    "unauthorized": errors.AccessError,
    "model-not-found": errors.ModelNotFoundError,
    "conflict": errors.ModelConflictError,
    "record-not-found": errors.NoRecordError,
    "ambiguous-record": errors.AmbiguousRecordError,
    "model-unloadable": errors.UnavailableError,
    "deadline-passed": errors.DeadlineError,
    "overloaded": errors.OverloadedError,
    "unavailable": errors.UnavailableError,
}


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Verdicts on B rows; all arrays have shape (B,).

    Attributes:
        model: the version that answered, NAME@VERSION; `digest` is that of its files.
        records: every field of the answer by name, including those of `explain`, `rule` and `fdr`.
        warnings: what looks like a mistake, or was changed on the way.
    """

    model: str
    digest: str
    records: np.ndarray
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def valid(self) -> np.ndarray:
        """Whether each row is valid, bool."""
        return np.asarray(self.records["valid"])

    @property
    def side(self) -> np.ndarray:
        """-1 below the band, 0 inside, 1 above; int8."""
        return np.asarray(self.records["side"])

    @property
    def certain(self) -> np.ndarray:
        """Whether the estimate's error is too small to change the verdict, bool."""
        return np.asarray(self.records["certain"])

    @property
    def violations(self) -> np.ndarray:
        """How many violations each row has; the service's JSON says which."""
        has_any = "violations" in (self.records.dtype.names or ())
        return np.asarray(self.records["violations"]) if has_any else np.zeros(len(self), np.int32)

    @property
    def log_likelihood(self) -> np.ndarray:
        """Estimates of log p(x), nats."""
        return np.asarray(self.records["log_likelihood"])

    @property
    def std_error(self) -> np.ndarray:
        """Standard errors of the estimates, nats."""
        return np.asarray(self.records["std_error"])

    @property
    def p_value(self) -> np.ndarray:
        """Two-sided conformal p-values, or those of the combined rule if it was requested."""
        names = self.records.dtype.names or ()
        return np.asarray(self.records["combined_p_value" if "combined_p_value" in names else "p_value"])


@dataclass(frozen=True, slots=True)
class Encoded:
    """q(z | x) of B rows.

    Attributes:
        mean: shape (B, L).
        std: shape (B, L).
    """

    mean: np.ndarray
    std: np.ndarray


def verdicts(response: httpx.Response) -> Verdicts:
    """The answer to POST /score."""
    headers = response.headers
    warnings = tuple(json.loads(headers.get("x-warnings", "[]")))
    return Verdicts(headers.get("x-model", ""), headers.get("x-model-digest", ""), array(response), warnings)


def encoded(response: httpx.Response) -> Encoded:
    """The answer to POST /encode."""
    both = array(response)
    return Encoded(both[:, 0], both[:, 1])


def array(response: httpx.Response) -> np.ndarray:
    return np.asarray(np.load(io.BytesIO(response.content), allow_pickle=False))


def document(response: httpx.Response) -> dict[str, Any]:
    """An answer in JSON."""
    answer: dict[str, Any] = response.json()
    return answer


def checked(response: httpx.Response) -> httpx.Response:
    """Return a successful response; raise the error in any other."""
    if response.is_success:
        return response
    raise error_of(response)


def error_of(response: httpx.Response) -> errors.VouchError:
    """The error that a problem document stands for."""
    try:
        problem = response.json()
        slug, detail = str(problem["type"]).removeprefix(PROBLEM), str(problem["detail"])
        faults = [fault_of(entry) for entry in problem.get("errors", [])]
    except (ValueError, KeyError, TypeError, AttributeError):
        slug, detail, faults = "", f"the service answered {response.status_code} without a reason", []
    kind = ERRORS.get(slug)
    if kind is None:  # from a proxy or another program; retry what may be temporary
        kind = errors.UnavailableError if response.status_code in (429, 502, 503) else errors.VouchError
    if issubclass(kind, errors.DeadlineError):
        return kind(detail)
    if issubclass(kind, errors.UnavailableError):
        return kind(detail, retry_after_s(response))
    return kind(detail, faults) if issubclass(kind, errors.InputError) else kind(detail)


def fault_of(entry: Mapping[str, Any]) -> errors.Fault:
    return errors.Fault(str(entry["message"]), entry.get("row"), entry.get("column"), entry.get("expected"))


def retry_after_s(response: httpx.Response) -> float:
    """Seconds in `Retry-After`; 0, which leaves the wait to the client, if there is no such header or it is a date."""
    try:
        return max(0.0, float(response.headers.get("retry-after", "0")))
    except ValueError:
        return 0.0


def transport_error(error: httpx.HTTPError) -> errors.UnavailableError:
    """The error for a request without an answer: the deadline passed, or the service is unreachable."""
    if isinstance(error, httpx.TimeoutException):
        return errors.DeadlineError(TOO_LATE)
    return errors.UnavailableError(f"the service cannot be reached: {type(error).__name__}", 0.0)
