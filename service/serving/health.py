"""Whether inference works: threads that run, batches that end, and rows that can be scored.

A bug, or a GPU that is gone, can make every batch fail, while all threads run. After several failures in a row, a row of
the model's own is tried, so that no caller's rows can make the service call itself broken. While that fails, requests are
refused at once; as soon as it succeeds, they are served again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from service.errors import ModelError, UnavailableError, VouchError
from service.scoring.scorer import Scorer
from service.serving.batching import InferenceThreads
from service.serving.registry import Registry

SUSPICIOUS = 5  # failures in a row before inference is tried
HOPELESS_S = 120.0  # for so long inference has failed before the process says that it is not alive
PROBE_S = 30.0  # for which a probe is waited for
RETRY_S = 2.0
log = logging.getLogger("vouch")


@dataclass
class Health:
    """The state of inference.

    Attributes:
        patience_s: how long a batch may run before its thread counts as stuck, in addition to HOPELESS_S.
        problem: why inference is believed not to work.
    """

    inference: InferenceThreads
    registry: Registry
    patience_s: float
    problem: str | None = None
    since: float = 0.0

    def is_ready(self) -> bool:
        """Whether the threads run and inference works, as far as is known."""
        return self.inference.is_alive() and self.problem is None

    def is_alive(self) -> bool:
        """Whether the threads run, and inference has not failed or stood still for long."""
        failed_s = 0.0 if self.problem is None else time.monotonic() - self.since
        stuck = self.inference.longest_s() > self.patience_s + HOPELESS_S
        return self.inference.is_alive() and failed_s < HOPELESS_S and not stuck

    def check_works(self) -> None:
        """Raise if inference is known not to work."""
        if self.problem is not None:
            raise UnavailableError(f"inference does not work at the moment: {self.problem}", RETRY_S)

    async def check(self, probe: Callable[[Scorer], Awaitable[None]]) -> None:
        """Try inference, if it has failed several times in a row or is known not to work."""
        if self.problem is None and self.inference.failures < SUSPICIOUS:
            return
        try:
            scorer = self.registry.in_memory(None)
        except (ModelError, UnavailableError):
            scorer = None
        if scorer is None:
            return
        try:
            async with asyncio.timeout(PROBE_S):
                await probe(scorer)
        except VouchError as error:  # the queue is full, for example: that says nothing
            log.warning("inference could not be tried", extra={"error": str(error)})
        except Exception as error:
            self.fail(type(error).__name__)
        else:
            if self.problem is not None:
                log.warning("inference works again")
            self.problem, self.inference.failures = None, 0

    def fail(self, problem: str) -> None:
        """Note that inference does not work."""
        if self.problem is None:
            self.since = time.monotonic()
            log.error("inference does not work", extra={"error": problem})
        self.problem = problem
