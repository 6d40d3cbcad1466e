"""The models that a process serves: loaded at the start, others on demand, failures remembered by version."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field

from service.errors import CalibrationError, DamagedModelError, ModelError, ModelNotFoundError
from service.scorer import Scorer, torch_device
from service.store import Reference, Store

RETRY_S = 30.0  # before the files of a version that failed are read again
log = logging.getLogger("vouch")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a version could not be loaded, and when that was."""

    text: str
    at: float

    def is_fresh(self) -> bool:
        """Whether it is too early to try again."""
        return time.monotonic() - self.at < RETRY_S


@dataclass
class Registry:
    """Scorers by version. What cannot be loaded is refused by name; the others go on."""

    store: Store
    device: str
    max_loaded: int
    threads: int
    scorers: dict[Reference, Scorer] = field(default_factory=dict)
    failures: dict[Reference, Failure] = field(default_factory=dict)
    loading: threading.Lock = field(default_factory=threading.Lock)

    def load_all(self) -> None:
        """Load and warm up the version that each bare name means."""
        for name in self.store.names():
            try:
                self.get(name).warm_up()
            except ModelError as error:
                log.error("model cannot be served", extra={"model": name, "error": str(error)})

    def get(self, name: str | None) -> Scorer:
        """The scorer for NAME, NAME@VERSION or NAME@ALIAS; None is the default.

        Raises:
            ModelNotFoundError: there is none such.
            DamagedModelError: it cannot be loaded.
        """
        reference = self.store.resolve(name)
        scorer = self.scorers.get(reference)
        return self.load(reference) if scorer is None else scorer

    def load(self, reference: Reference) -> Scorer:
        """Read a version into memory, one at a time; those that are in memory wait for none."""
        with self.loading:
            if reference in self.scorers:
                return self.scorers[reference]
            failure = self.failures.get(reference)
            if failure is not None and failure.is_fresh():
                raise DamagedModelError(failure.text)
            try:
                scorer = Scorer(self.store.load(reference), torch_device(self.device), self.threads)
            except (DamagedModelError, CalibrationError) as error:
                self.failures[reference] = Failure(str(error), time.monotonic())
                raise DamagedModelError(str(error)) from error
            self.failures.pop(reference, None)
            self.scorers[reference] = scorer
            self.forget_oldest(reference)
            return scorer

    def forget_oldest(self, newest: Reference) -> None:
        """Keep the served versions and the latest others, within the limit."""
        served = {self.store.resolve(name) for name in self.store.names()} | {newest}
        others = [reference for reference in self.scorers if reference not in served]
        for reference in others[: max(0, len(others) - self.max_loaded)]:
            del self.scorers[reference]

    def status(self) -> dict[str, str]:
        """Each model and `ready`, or why it is not."""
        return {name: self.state(self.store.resolve(name)) for name in self.store.names()}

    def state(self, reference: Reference) -> str:
        """`ready`, why it failed, or that nobody has asked for it yet."""
        if reference in self.scorers:
            return "ready"
        failure = self.failures.get(reference)
        return "not loaded yet" if failure is None else failure.text

    def default_is_ready(self) -> bool:
        """Whether a request that names no model can be answered; loads a version that has just become the default."""
        try:
            self.get(None)
        except ModelError:
            return False
        return True

    def known(self, name: str) -> str:
        """The name, if the store has a model of that name."""
        if not self.store.versions(name):
            raise ModelNotFoundError("no such model in the store")
        return name
