"""Client for the service: `pip install '.[client]'`.

    with Client("http://127.0.0.1:8000", model="mnist", deadline_s=2.0) as vouch:
        accepted = rows[vouch.score(rows, false_alarm=0.01).valid]

Arrays are sent as npy files, rows of named columns (data frames, dicts) as JSON; answers are npy files. If the service
refuses a request, the client raises the error that a Scorer would raise (`service.errors`). If the queue is full, or the
service is not ready or unreachable, the client waits for as long as the service asks and retries, until the deadline. Each
attempt tells the service how much time is left. A call that cannot finish in time raises `DeadlineError`, or the error of
its last attempt.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypedDict, Unpack

import httpx
import numpy as np
import stamina

from service import errors

NPY = "application/x-npy"
JSON = "application/json"
FIRST_WAIT_S, LONGEST_WAIT_S, JITTER_S = 0.05, 2.0, 0.1
LEAST_TIME_S = 1e-3  # with less time left, no attempt is made
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
    "model-unloadable": errors.UnavailableError,
    "deadline-passed": errors.DeadlineError,
    "overloaded": errors.OverloadedError,
    "unavailable": errors.UnavailableError,
}
Rows = Any  # an array, a data frame of any library, a dict, or a sequence of dicts or of lists


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Verdicts on B rows; all arrays have shape (B,).

    `records` has every field of the answer by name, including those of `explain`, `rule` and `fdr`.
    """

    model: str
    digest: str
    records: np.ndarray

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


class ScoreQuery(TypedDict, total=False):
    """Query parameters of POST /score; `service.web.query.ScoreQuery` describes them."""

    percentiles: tuple[float, float] | None
    false_alarm: float | None
    tail: Literal["low", "both"] | None
    rule: Literal["band", "combined"] | None
    fdr: float | None
    explain: int
    strict: bool


@dataclass(frozen=True, slots=True)
class Call:
    """A request that may be sent several times; its deadline `until` is a time of the monotonic clock."""

    method: str
    path: str
    until: float
    params: dict[str, Any]
    body: bytes = b""
    content_type: str = NPY

    def left_s(self) -> float:
        """Seconds until the deadline.

        Raises:
            DeadlineError: no time is left.
        """
        left = self.until - time.monotonic()
        if left < LEAST_TIME_S:
            raise errors.DeadlineError(TOO_LATE)
        return left

    def request(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        left = self.left_s()
        headers = {"accept": NPY, "x-request-timeout": f"{left:.3f}"}
        if self.body:
            headers["content-type"] = self.content_type
        return client.build_request(
            self.method, self.path, params=self.params, content=self.body, headers=headers, timeout=left
        )

    def wait_s(self, error: Exception) -> bool | float:
        """Whether to retry after an error, and after how many seconds; False if the deadline comes first."""
        if not isinstance(error, errors.UnavailableError) or isinstance(error, errors.DeadlineError):
            return False
        asked = error.retry_after_s
        return asked < self.until - time.monotonic() and (asked or True)

    def tries(self, attempts: int) -> Any:
        """stamina's retry loop; the waits that it chooses are at most a fifth of the time left."""
        left = self.left_s()
        return stamina.retry_context(
            self.wait_s,
            attempts=attempts,
            timeout=left,
            wait_initial=FIRST_WAIT_S,
            wait_max=min(LONGEST_WAIT_S, 0.2 * left),
            wait_jitter=JITTER_S,
        )


@dataclass(frozen=True, slots=True)
class Connection:
    """Settings that both clients share, and the calls made from them."""

    model: str | None
    deadline_s: float
    attempts: int

    def call(self, method: str, path: str, params: Mapping[str, Any], rows: Rows | None = None) -> Call:
        """A call for the client's model; its deadline counts from now."""
        given = {"model": self.model, **params}
        chosen = {key: value for key, value in given.items() if value is not None}
        body, content_type = (b"", NPY) if rows is None else encoded(rows)
        return Call(method, path, time.monotonic() + self.deadline_s, chosen, body, content_type)

    def score(self, rows: Rows, query: ScoreQuery) -> Call:
        """A call of POST /score."""
        params: dict[str, Any] = {**query, "explain": query.get("explain") or None}
        if (pair := query.get("percentiles")) is not None:
            params["percentiles"] = f"{pair[0]!r},{pair[1]!r}"
        return self.call("POST", "/score", params, rows)


class Client:
    """Synchronous client; safe to share between threads.

    Args:
        url: base URL of the service, such as http://127.0.0.1:8000.
        model: NAME, NAME@VERSION or NAME@ALIAS; None: the service's default.
        key: an API key, if the service requires one.
        deadline_s: seconds that a call may take in total, including retries and the waits between them. httpx times
            connecting, writing and reading separately, so a service that trickles its answer may take longer;
            `AsyncClient` is strict.
        attempts: most attempts per call.
        transport: an httpx transport, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        key: str | None = None,
        deadline_s: float = 10.0,
        attempts: int = 5,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.connection = Connection(model, deadline_s, attempts)
        self.http = httpx.Client(base_url=url, headers=key_header(key), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self.http.close()

    def score(self, rows: Rows, **query: Unpack[ScoreQuery]) -> Verdicts:
        """Verdicts on rows: an array, rows first, or a list of mappings from column names to values.

        Raises:
            VouchError: the service refused the request, or did not answer in time (`UnavailableError`).
        """
        return verdicts(self.send(self.connection.score(rows, query)))

    def reconstruct(self, rows: Rows) -> np.ndarray:
        """E[x | z] over p(z | x) of each row, in the units of the training data, shape (B, *input shape)."""
        return array(self.send(self.connection.call("POST", "/reconstruct", {}, rows)))

    def sample(self, num: int = 16, seed: int | None = None) -> np.ndarray:
        """Rows drawn from the model, shape (num, *input shape)."""
        return array(self.send(self.connection.call("GET", "/sample", {"num": num, "seed": seed})))

    def send(self, call: Call) -> httpx.Response:
        """Send a call, with retries, and return the successful response."""
        for attempt in call.tries(self.connection.attempts):
            with attempt:
                return checked(self.answered(call))
        raise AssertionError("the loop over tries returns or raises")

    def answered(self, call: Call) -> httpx.Response:
        """The answer of one attempt."""
        try:
            return self.http.send(call.request(self.http))
        except httpx.HTTPError as error:
            raise transport_error(error) from error


class AsyncClient:
    """Asynchronous client, with the arguments and methods of `Client`; its deadline is strict."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        key: str | None = None,
        deadline_s: float = 10.0,
        attempts: int = 5,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.connection = Connection(model, deadline_s, attempts)
        self.http = httpx.AsyncClient(base_url=url, headers=key_header(key), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self.http.aclose()

    async def score(self, rows: Rows, **query: Unpack[ScoreQuery]) -> Verdicts:
        """Verdicts on rows, as `Client.score`."""
        return verdicts(await self.send(self.connection.score(rows, query)))

    async def reconstruct(self, rows: Rows) -> np.ndarray:
        """E[x | z] over p(z | x) of each row, as `Client.reconstruct`."""
        return array(await self.send(self.connection.call("POST", "/reconstruct", {}, rows)))

    async def sample(self, num: int = 16, seed: int | None = None) -> np.ndarray:
        """Rows drawn from the model, as `Client.sample`."""
        return array(await self.send(self.connection.call("GET", "/sample", {"num": num, "seed": seed})))

    async def send(self, call: Call) -> httpx.Response:
        """Send a call, with retries, and return the successful response."""
        try:
            async with asyncio.timeout(call.left_s()):
                async for attempt in call.tries(self.connection.attempts):
                    with attempt:
                        return checked(await self.answered(call))
        except TimeoutError as error:
            raise errors.DeadlineError(TOO_LATE) from error
        raise AssertionError("the loop over tries returns or raises")

    async def answered(self, call: Call) -> httpx.Response:
        """`Client.answered`."""
        try:
            return await self.http.send(call.request(self.http))
        except httpx.HTTPError as error:
            raise transport_error(error) from error


def key_header(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}


def encoded(rows: Rows) -> tuple[bytes, str]:
    """Rows as a request body, and its content type."""
    if not isinstance(rows, np.ndarray) and (instances := named_rows(rows)) is not None:
        return json.dumps({"instances": instances}).encode(), JSON
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(rows), allow_pickle=False)
    return buffer.getvalue(), NPY


def named_rows(rows: Rows) -> list[Any] | None:
    """Rows of named columns, for JSON; None if they are lists of numbers."""
    from service.data.frames import is_frame, json_rows, plain_row, raw_frame  # an application of arrays does without

    if is_frame(rows):
        return json_rows(raw_frame(rows))
    if isinstance(rows, Mapping):
        rows = [rows]
    if any(isinstance(row, Mapping) for row in rows):
        return [plain_row(row) if isinstance(row, Mapping) else row for row in rows]
    return None


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


def verdicts(response: httpx.Response) -> Verdicts:
    """Decode the answer to POST /score."""
    headers = response.headers
    return Verdicts(headers.get("x-model", ""), headers.get("x-model-digest", ""), array(response))


def array(response: httpx.Response) -> np.ndarray:
    return np.asarray(np.load(io.BytesIO(response.content), allow_pickle=False))
