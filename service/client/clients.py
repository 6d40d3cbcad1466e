"""The two clients, which differ in how they wait."""

from __future__ import annotations

import asyncio
from typing import Any, Self, TypeVar, Unpack
from urllib.parse import quote

import httpx
import numpy as np

from service import errors
from service.client.answers import TOO_LATE, Encoded, Verdicts, checked, transport_error
from service.client.calls import Call, Connection, Drawn, Question, Rows, ScoreQuery

T = TypeVar("T")


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
        """Verdicts on rows.

        Args:
            rows: an array, rows first; a data frame; a mapping from column names to values, or a list of them; or files: a
                path or a list of paths, such as those of images.

        Raises:
            VouchError: the service refused the request, or did not answer in time (`UnavailableError`).
        """
        return self.answer(self.connection.score(rows, query))

    def report(self, rows: Rows, **query: Unpack[ScoreQuery]) -> dict[str, Any]:
        """The answer to `score` as JSON has it: with the reason of each refusal, violations, ids and suspicious columns."""
        return self.answer(self.connection.report(rows, query))

    def maps(self, rows: Rows) -> np.ndarray:
        """Where images do not belong: log-likelihood and strangeness of each pixel, shape (B, 2, H, W)."""
        return self.answer(self.connection.maps(rows))

    def reconstruct(self, rows: Rows) -> np.ndarray:
        """E[x | z] over p(z | x) of each row, in the units of the training data, shape (B, *input shape)."""
        return self.answer(self.connection.reconstruct(rows))

    def posterior_draws(self, rows: Rows, draws: int = 16) -> list[list[Any]]:
        """For each row, so many observations drawn from p(x | z) over p(z | x)."""
        return self.answer(self.connection.posterior_draws(rows, draws))

    def sample(self, num: int = 16, seed: int | None = None, of: Drawn | None = None) -> np.ndarray:
        """Rows drawn from the model, shape (num, *input shape); `of="mean"` for E[x | z] of z from the prior."""
        return self.answer(self.connection.sample(num, seed, of))

    def encode(self, rows: Rows, member: int | None = None) -> Encoded:
        """q(z | x) of each row; of an ensemble, that of one member."""
        return self.answer(self.connection.encode(rows, member))

    def decode(self, latents: np.ndarray, member: int | None = None) -> np.ndarray:
        """E[x | z] of latents, shape (B, L); shape (B, *input shape)."""
        return self.answer(self.connection.decode(latents, member))

    def manifold(self, size: int = 20, axes: tuple[int, int] = (0, 1), member: int | None = None) -> np.ndarray:
        """E[x | z] over a grid of prior quantiles of two latents, shape (size * size, *input shape), row by row."""
        return self.answer(self.connection.manifold(size, axes, member))

    def models(self) -> dict[str, Any]:
        """The models that the service has, with versions and aliases."""
        return self.answer(self.connection.document("/models"))

    def model(self, name: str) -> dict[str, Any]:
        """One model, with the card of the version that is served."""
        return self.answer(self.connection.document(f"/models/{quote(name, safe='')}"))

    def drift(self) -> list[dict[str, Any]]:
        """The drift monitors: of the client's model, or of all."""
        return self.answer(self.connection.drift())

    def restart_drift(self, name: str) -> dict[str, Any]:
        """Restart a model's drift monitor, with a key of scope admin."""
        return self.answer(self.connection.post(f"/models/{quote(name, safe='')}/drift", {"restart": True}))

    def move_alias(self, name: str, alias: str, version: str, expected: str | None = None) -> dict[str, Any]:
        """Point an alias at a version, with a key of scope admin; with `expected`, only if it names that version now."""
        return self.answer(self.connection.move_alias(name, alias, version, expected))

    def feedback(self, record: str, label: str, note: str | None = None, instance: Any = None) -> dict[str, Any]:
        """Say what a judged row is: `valid`, `invalid` or `unsure`, with a key of scope review.

        Args:
            record: of the row's score.
            instance: the row itself, to be kept with the journal.
        """
        return self.answer(self.connection.feedback(record, label, note, instance))

    def reviews(self, answered: bool | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """The rows that people are asked about, or have spoken of; `answered` by the client's own key, or not."""
        return self.answer(self.connection.reviews(answered, limit))

    def version(self) -> str:
        """The version of Vouch that the service runs."""
        return self.answer(self.connection.version())

    def wait_until_ready(self) -> None:
        """Return when the service can answer, at most after the deadline.

        Raises:
            UnavailableError: it cannot.
        """
        return self.answer(self.connection.ready())

    def answer(self, question: Question[T]) -> T:
        """Ask, with retries.

        Raises:
            VouchError: the service refused the request, or did not answer in time.
        """
        call = question.call
        for attempt in call.tries(question.attempts or self.connection.attempts):
            with attempt:
                return question.decode(checked(self.answered(call)))
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
        """As `Client.score`."""
        return await self.answer(self.connection.score(rows, query))

    async def report(self, rows: Rows, **query: Unpack[ScoreQuery]) -> dict[str, Any]:
        """As `Client.report`."""
        return await self.answer(self.connection.report(rows, query))

    async def maps(self, rows: Rows) -> np.ndarray:
        """As `Client.maps`."""
        return await self.answer(self.connection.maps(rows))

    async def reconstruct(self, rows: Rows) -> np.ndarray:
        """As `Client.reconstruct`."""
        return await self.answer(self.connection.reconstruct(rows))

    async def posterior_draws(self, rows: Rows, draws: int = 16) -> list[list[Any]]:
        """As `Client.posterior_draws`."""
        return await self.answer(self.connection.posterior_draws(rows, draws))

    async def sample(self, num: int = 16, seed: int | None = None, of: Drawn | None = None) -> np.ndarray:
        """As `Client.sample`."""
        return await self.answer(self.connection.sample(num, seed, of))

    async def encode(self, rows: Rows, member: int | None = None) -> Encoded:
        """As `Client.encode`."""
        return await self.answer(self.connection.encode(rows, member))

    async def decode(self, latents: np.ndarray, member: int | None = None) -> np.ndarray:
        """As `Client.decode`."""
        return await self.answer(self.connection.decode(latents, member))

    async def manifold(self, size: int = 20, axes: tuple[int, int] = (0, 1), member: int | None = None) -> np.ndarray:
        """As `Client.manifold`."""
        return await self.answer(self.connection.manifold(size, axes, member))

    async def models(self) -> dict[str, Any]:
        """As `Client.models`."""
        return await self.answer(self.connection.document("/models"))

    async def model(self, name: str) -> dict[str, Any]:
        """As `Client.model`."""
        return await self.answer(self.connection.document(f"/models/{quote(name, safe='')}"))

    async def drift(self) -> list[dict[str, Any]]:
        """As `Client.drift`."""
        return await self.answer(self.connection.drift())

    async def restart_drift(self, name: str) -> dict[str, Any]:
        """As `Client.restart_drift`."""
        return await self.answer(self.connection.post(f"/models/{quote(name, safe='')}/drift", {"restart": True}))

    async def move_alias(self, name: str, alias: str, version: str, expected: str | None = None) -> dict[str, Any]:
        """As `Client.move_alias`."""
        return await self.answer(self.connection.move_alias(name, alias, version, expected))

    async def feedback(self, record: str, label: str, note: str | None = None, instance: Any = None) -> dict[str, Any]:
        """As `Client.feedback`."""
        return await self.answer(self.connection.feedback(record, label, note, instance))

    async def reviews(self, answered: bool | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """As `Client.reviews`."""
        return await self.answer(self.connection.reviews(answered, limit))

    async def version(self) -> str:
        """As `Client.version`."""
        return await self.answer(self.connection.version())

    async def wait_until_ready(self) -> None:
        """As `Client.wait_until_ready`."""
        return await self.answer(self.connection.ready())

    async def answer(self, question: Question[T]) -> T:
        """As `Client.answer`."""
        call = question.call
        try:
            async with asyncio.timeout(call.left_s()):
                async for attempt in call.tries(question.attempts or self.connection.attempts):
                    with attempt:
                        return question.decode(checked(await self.answered(call)))
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
