"""The models that a process serves: loaded at the start, others on demand, failures remembered by name."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from service.errors import CalibrationError, DamagedModelError, ModelError, ModelNotFoundError
from service.scorer import Scorer, torch_device
from service.store import Reference, Store

log = logging.getLogger("vouch")


@dataclass
class Registry:
    """Scorers by version. What cannot be loaded is refused by name; the others go on."""

    store: Store
    device: str
    max_loaded: int
    scorers: OrderedDict[Reference, Scorer] = field(default_factory=OrderedDict)
    failures: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def load_all(self) -> None:
        """Load and warm up the version that each bare name means."""
        for name in self.store.names():
            try:
                self.get(name).warm_up()
            except (ModelError, CalibrationError) as error:
                self.failures[name] = str(error)
                log.error("model cannot be served", extra={"model": name, "error": str(error)})

    def get(self, name: str | None) -> Scorer:
        """The scorer for NAME, NAME@VERSION or NAME@ALIAS; None is the default.

        Raises:
            ModelNotFoundError: there is none such.
            DamagedModelError: it cannot be loaded.
        """
        reference = self.store.resolve(name)
        with self.lock:
            if reference not in self.scorers:
                try:
                    self.scorers[reference] = Scorer(self.store.load(reference), torch_device(self.device))
                except CalibrationError as error:
                    raise DamagedModelError(str(error)) from error
                self.forget_oldest(reference)
            self.scorers.move_to_end(reference)
            return self.scorers[reference]

    def forget_oldest(self, newest: Reference) -> None:
        """Keep the served versions and the most recently used others, within the limit."""
        served = {self.store.resolve(name) for name in self.store.names()} | {newest}
        others = [reference for reference in self.scorers if reference not in served]
        for reference in others[: max(0, len(others) - self.max_loaded)]:
            del self.scorers[reference]

    def status(self) -> dict[str, str]:
        """Each model and `ready`, or why it is not."""
        return {name: self.failures.get(name, "ready") for name in self.store.names()}

    def default_is_ready(self) -> bool:
        """Whether a request that names no model can be answered."""
        try:
            return self.store.resolve() in self.scorers
        except ModelError:
            return False

    def loaded(self, reference: Reference) -> bool:
        """Whether the version is in memory."""
        return reference in self.scorers

    def known(self, name: str) -> str:
        """The name, if the store has a model of that name."""
        if not self.store.versions(name):
            raise ModelNotFoundError("no such model in the store")
        return name
