"""Calls of the service: what each method sends, and within which time."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
import stamina

from service import errors
from service.client.answers import TOO_LATE, Encoded, Verdicts, array, document, encoded, verdicts

NPY, JSON = "application/x-npy", "application/json"
FIRST_WAIT_S, LONGEST_WAIT_S, JITTER_S = 0.05, 2.0, 0.1
LEAST_TIME_S = 1e-3  # with less time left, no attempt is made
Rows = Any  # an array, a data frame, a dict, a sequence of dicts or of lists, or files: a path or a list of them
Drawn = Literal["observation", "mean"]
ALWAYS, POLL_S = 10**6, 0.2  # attempts: until the deadline; and seconds between them
T = TypeVar("T")


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
    accept: str = NPY
    polls: bool = False  # ask again and again, whatever the service says of when

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
        headers = {"accept": self.accept, "x-request-timeout": f"{left:.3f}"}
        if self.body:
            headers["content-type"] = self.content_type
        return client.build_request(
            self.method, self.path, params=self.params, content=self.body, headers=headers, timeout=left
        )

    def wait_s(self, error: Exception) -> bool | float:
        """Whether to retry after an error, and after how many seconds; False if the deadline comes first."""
        if not isinstance(error, errors.UnavailableError) or isinstance(error, errors.DeadlineError):
            return False
        asked = POLL_S if self.polls else error.retry_after_s
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
class Question(Generic[T]):
    """A call, and what becomes of its answer."""

    call: Call
    decode: Callable[[httpx.Response], T]
    attempts: int | None = None  # most attempts; None: those of the connection


@dataclass(frozen=True, slots=True)
class Connection:
    """Settings that both clients share, and the questions that they ask with them."""

    model: str | None
    deadline_s: float
    attempts: int

    def call(
        self, method: str, path: str, params: Mapping[str, Any], rows: Rows | None = None, accept: str = NPY
    ) -> Call:
        """A call whose deadline counts from now; parameters that are None are left out."""
        chosen = {key: value for key, value in params.items() if value is not None}
        body, content_type = (b"", NPY) if rows is None else body_of(rows)
        return Call(method, path, time.monotonic() + self.deadline_s, chosen, body, content_type, accept)

    def of_model(self, method: str, path: str, rows: Rows | None = None, accept: str = NPY, **params: Any) -> Call:
        """A call for the client's model."""
        return self.call(method, path, {"model": self.model, **params}, rows, accept)

    def score(self, rows: Rows, query: ScoreQuery) -> Question[Verdicts]:
        return Question(self.of_model("POST", "/score", rows, **parameters(query)), verdicts)

    def report(self, rows: Rows, query: ScoreQuery) -> Question[dict[str, Any]]:
        return Question(self.of_model("POST", "/score", rows, JSON, **parameters(query)), document)

    def maps(self, rows: Rows) -> Question[np.ndarray]:
        return Question(self.of_model("POST", "/score", rows, explain="map"), array)

    def reconstruct(self, rows: Rows) -> Question[np.ndarray]:
        return Question(self.of_model("POST", "/reconstruct", rows), array)

    def posterior_draws(self, rows: Rows, draws: int) -> Question[list[list[Any]]]:
        def decode(response: httpx.Response) -> list[list[Any]]:
            return [row["draws"] for row in document(response)["reconstructions"]]

        return Question(self.of_model("POST", "/reconstruct", rows, JSON, draws=draws), decode)

    def sample(self, num: int, seed: int | None, of: Drawn | None) -> Question[np.ndarray]:
        return Question(self.of_model("GET", "/sample", num=num, seed=seed, of=of), array)

    def encode(self, rows: Rows, member: int | None) -> Question[Encoded]:
        return Question(self.of_model("POST", "/encode", rows, member=member), encoded)

    def decode(self, latents: Rows, member: int | None) -> Question[np.ndarray]:
        return Question(self.of_model("POST", "/decode", np.asarray(latents), member=member), array)

    def manifold(self, size: int, axes: tuple[int, int], member: int | None) -> Question[np.ndarray]:
        pair = f"{axes[0]},{axes[1]}"
        return Question(self.of_model("GET", "/manifold", size=size, axes=pair, member=member), array)

    def version(self) -> Question[str]:
        return Question(
            self.call("GET", "/version", {}, accept=JSON), lambda response: str(document(response)["vouch"])
        )

    def ready(self) -> Question[None]:
        return Question(
            replace(self.call("GET", "/readyz", {}, accept=JSON), polls=True), lambda response: None, ALWAYS
        )

    def document(self, path: str) -> Question[dict[str, Any]]:
        """What a GET of a path answers in JSON."""
        return Question(self.call("GET", path, {}, accept=JSON), document)

    def drift(self) -> Question[list[dict[str, Any]]]:
        def decode(response: httpx.Response) -> list[dict[str, Any]]:
            monitors: list[dict[str, Any]] = document(response)["drift"]
            return monitors

        return Question(self.of_model("GET", "/drift", accept=JSON), decode)

    def post(self, path: str, body: Mapping[str, Any]) -> Question[dict[str, Any]]:
        """What the service answers to a small object in JSON, with which an administrator changes something."""
        call = Call("POST", path, time.monotonic() + self.deadline_s, {}, json.dumps(body).encode(), JSON, JSON)
        return Question(call, document, attempts=1)  # a second try could undo, or miss, what the first one did

    def feedback(self, record: str, label: str, note: str | None, instance: Any) -> Question[dict[str, Any]]:
        told = {"record": record, "label": label, "note": note, "instance": instance}
        return self.post("/feedback", {name: value for name, value in told.items() if value is not None})

    def reviews(self, answered: bool | None, limit: int) -> Question[list[dict[str, Any]]]:
        def decode(response: httpx.Response) -> list[dict[str, Any]]:
            listed: list[dict[str, Any]] = document(response)["reviews"]
            return listed

        told = None if answered is None else str(answered).lower()
        return Question(self.of_model("GET", "/feedback", accept=JSON, answered=told, limit=limit), decode)

    def move_alias(self, model: str, alias: str, version: str, expected: str | None) -> Question[dict[str, Any]]:
        move = {"alias": alias, "version": str(version), **({} if expected is None else {"expected": str(expected)})}
        return self.post(f"/models/{quote(model, safe='')}/aliases", move)


def parameters(query: ScoreQuery) -> dict[str, Any]:
    """The query of POST /score."""
    params: dict[str, Any] = {**query, "explain": query.get("explain") or None}
    if (pair := query.get("percentiles")) is not None:
        params["percentiles"] = f"{pair[0]!r},{pair[1]!r}"
    return params


def body_of(rows: Rows) -> tuple[bytes, str]:
    """Rows as a request body, and its content type.

    Raises:
        InputError: they cannot be sent.
    """
    if (paths := paths_of(rows)) is not None:
        return form_of(paths)
    if isinstance(rows, np.ndarray):
        return npy_of(rows), NPY
    instances = named_rows(rows)
    if instances is None:
        try:
            return npy_of(np.asarray(rows)), NPY
        except ValueError:  # text or None among the numbers, or rows of different lengths
            instances = [list(row) if isinstance(row, tuple) else row for row in rows]
    try:
        return json.dumps({"instances": instances}, default=plain).encode(), JSON
    except TypeError as error:
        raise errors.InputError(f"the rows cannot be sent: {error}; expected numbers, text and None") from None


def plain(value: Any) -> Any:
    """What numpy holds, for JSON."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a cell is of type {type(value).__name__}")


def npy_of(rows: np.ndarray) -> bytes:
    """An array as a file.

    Raises:
        ValueError: it does not hold numbers.
    """
    if rows.dtype.kind not in "uifb":
        raise ValueError("expected an array of numbers")
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(rows), allow_pickle=False)
    return buffer.getvalue()


def paths_of(rows: Rows) -> list[Path] | None:
    """The files that rows are in, if they are paths."""
    if isinstance(rows, str | Path):
        return [Path(rows)]
    if isinstance(rows, Sequence) and rows and all(isinstance(row, str | Path) for row in rows):
        return [Path(row) for row in rows]
    return None


def form_of(paths: Sequence[Path]) -> tuple[bytes, str]:
    """Files as a form, each under its name, by which the service knows what it is, and which is the row's id.

    Raises:
        InputError: names a file that cannot be read.
    """
    files = []
    for path in paths:
        try:
            files.append(("file", (path.name, path.read_bytes(), "application/octet-stream")))
        except OSError as error:
            raise errors.InputError(f"{path}: cannot be read: {type(error).__name__}") from error
    form = httpx.Request("POST", "http://form", files=files)
    return form.read(), form.headers["content-type"]


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
