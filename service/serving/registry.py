"""The models that a process serves: the store's content at the last poll, and the versions in memory.

A new version or alias takes over in one step, after it was read, verified, warmed up and checked against its golden rows.
If that fails, the old version keeps serving, and `held_back` says why.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from service.errors import DamagedModelError, ModelError, ModelNotFoundError, UnavailableError, VouchError
from service.scoring.scorer import Scorer, torch_device
from service.scoring.version import Reference
from service.store.store import Catalog, Store

SILENT_S = 15.0  # after which a store that does not answer is said not to
RETRY_S = 30.0  # before a version that failed to load is read again
STORE = "store"  # the key in `held_back` if the store itself cannot be read
log = logging.getLogger("vouch")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a version could not be loaded, and when."""

    text: str
    at: float

    def is_fresh(self) -> bool:
        """Whether it is too early to try again."""
        return time.monotonic() - self.at < RETRY_S


@dataclass
class Registry:
    """Scorers by version. A version that cannot be loaded is refused; the others keep serving.

    `catalog` resolves the names in requests. It is replaced as a whole, so that readers need no lock.
    """

    store: Store
    device: str
    max_loaded: int
    on_failure: Callable[[], None] = lambda: None
    on_load: Callable[[Scorer], None] = lambda scorer: None
    on_change: Callable[[Catalog | None, Catalog], None] = lambda before, after: None  # of the catalog that is served
    catalog: Catalog = field(default_factory=lambda: Catalog({}, {}, None, {}))
    found: Catalog | None = None  # the store's content at the last poll
    wanted: set[Reference] = field(default_factory=set)  # the versions that bare names and aliases mean in the store
    scorers: dict[Reference, Scorer] = field(default_factory=dict)
    failures: dict[Reference, Failure] = field(default_factory=dict)
    held_back: dict[str, str] = field(default_factory=dict)
    loading: threading.Lock = field(default_factory=threading.Lock)
    refreshing: threading.Lock = field(default_factory=threading.Lock)

    # Called by requests

    def resolve(self, name: str | None) -> Reference:
        """The version that NAME, NAME@VERSION or NAME@ALIAS means; None is the default.

        Raises:
            ModelNotFoundError: no such model, version or alias.
            UnavailableError: the store has not been read yet.
        """
        if self.found is None:
            raise UnavailableError(self.held_back.get(STORE, "models are loading"), 2.0)
        return self.catalog.resolve(name)

    def in_memory(self, name: str | None) -> Scorer | None:
        """The scorer for NAME, NAME@VERSION or NAME@ALIAS, if it is loaded; None is the default."""
        return self.scorers.get(self.resolve(name))

    def get(self, name: str | None) -> Scorer:
        """The scorer for NAME, NAME@VERSION or NAME@ALIAS; None is the default.

        Raises:
            ModelNotFoundError: no such model, version or alias.
            DamagedModelError: it cannot be loaded.
        """
        reference = self.resolve(name)
        scorer = self.scorers.get(reference)
        if scorer is None:
            self.store.check_holds(reference, self.catalog)
            scorer = self.load(reference)
        return scorer

    def load(self, reference: Reference) -> Scorer:
        """Load, verify and warm up a version, one at a time; versions in memory do not wait for this."""
        with self.loading:
            if reference in self.scorers:
                return self.scorers[reference]
            failure = self.failures.get(reference)
            if failure is not None and failure.is_fresh():
                raise DamagedModelError(failure.text)
            try:
                scorer = Scorer(self.store.load(reference), torch_device(self.device))
                scorer.warm_up()
                self.on_load(scorer)
            except Exception as error:
                text = str(error) if isinstance(error, VouchError) else f"{reference}: {type(error).__name__}"
                if not isinstance(error, VouchError):
                    log.exception("cannot load a model", extra={"model": str(reference)})
                self.failures[reference] = Failure(text, time.monotonic())
                self.on_failure()
                raise DamagedModelError(text) from error
            self.failures.pop(reference, None)
            self.scorers = self.kept(reference) | {reference: scorer}
            return scorer

    def kept(self, newest: Reference) -> dict[Reference, Scorer]:
        """The scorers to keep with a new one: those that are served, and the latest others, within the limit."""
        served = {target for name in self.catalog.names() for target in self.catalog.targets(name)}
        others = [reference for reference in self.scorers if reference not in served | self.wanted | {newest}]
        forgotten = others[: max(0, len(others) + 1 - self.max_loaded)]
        return {reference: scorer for reference, scorer in self.scorers.items() if reference not in forgotten}

    # Polling the store

    def refresh(self) -> None:
        """Poll the store, load what is new, and serve it."""
        with self.refreshing:
            try:
                found = self.store.catalog()
                if found == self.found and not self.held_back:
                    return
                self.hold_back(self.load_targets(found))
            except VouchError as error:
                self.hold_back({STORE: str(error)})
                return
            except Exception as error:  # polling must go on
                log.exception("cannot poll the store")
                self.hold_back({STORE: type(error).__name__})
                return
            merged = self.merged(found)
            self.on_change(None if self.found is None else self.catalog, merged)
            self.catalog = merged
            self.found = found

    def load_targets(self, found: Catalog) -> dict[str, str]:
        """Load what every bare name and alias means; return the problems by version."""
        problems = {}
        self.wanted = {target for name in found.names() for target in found.targets(name)}
        for reference in sorted(self.wanted, key=str):
            if reference not in self.scorers:
                try:
                    self.store.check_holds(reference, found)
                    self.load(reference)
                except (ModelError, UnavailableError) as error:
                    problems[str(reference)] = str(error)
        return problems

    def merged(self, found: Catalog) -> Catalog:
        """The catalog that was found, with the old version in place of each one that cannot be served."""
        old = self.catalog
        serving = dict(found.serving)
        aliases = {name: dict(named) for name, named in found.aliases.items()}
        for name in found.names():
            before = old.serving.get(name)
            if Reference(name, serving[name]) not in self.scorers and before is not None:
                serving[name] = before
            for alias, target in aliases[name].items():
                previous = old.aliases.get(name, {}).get(alias)
                if Reference(name, target) not in self.scorers and previous is not None:
                    aliases[name][alias] = previous
        default = found.default
        if default is None or Reference(default, serving.get(default, "")) not in self.scorers:
            default = old.default or default
        return replace(found, serving=serving, aliases=aliases, default=default)

    def hold_back(self, problems: dict[str, str]) -> None:
        """Record why new versions are not served, and log each problem once."""
        for what, text in problems.items():
            if self.held_back.get(what) != text:
                log.error("version cannot be served; the old one keeps serving", extra={"what": what, "error": text})
        self.held_back = problems

    # State of the models

    def status(self) -> dict[str, str]:
        """State of each model: `ready`, or why it is not."""
        catalog = self.catalog
        return {name: self.state(Reference(name, catalog.serving[name])) for name in catalog.names()}

    def state(self, reference: Reference) -> str:
        """`ready`, why it failed to load, or that it has not been requested yet."""
        if reference in self.scorers:
            return "ready"
        failure = self.failures.get(reference)
        return "not loaded yet" if failure is None else failure.text

    def problems(self) -> dict[str, str]:
        """Why new versions are not served, or what the store does not answer."""
        silent_s = self.store.silent_s()
        if silent_s < SILENT_S:
            return self.held_back
        return self.held_back | {STORE: f"the store has not answered for {silent_s:.0f} s"}

    def phase(self) -> str:
        """`loading` until the store was first polled, `unavailable` if the default model is missing after that."""
        return "loading" if self.found is None and not self.held_back else "unavailable"

    def default_is_ready(self) -> bool:
        """Whether requests for the default model can be answered."""
        try:
            return self.in_memory(None) is not None
        except (ModelError, UnavailableError):
            return False

    def known(self, name: str) -> str:
        """Return the name if the store has such a model, or raise ModelNotFoundError."""
        if name not in self.catalog.versions:
            raise ModelNotFoundError("no such model in the store; GET /models lists those that there are")
        return name
