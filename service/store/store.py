"""The model store: immutable, verified model versions, in a folder or at an fsspec URL.

    STORE/NAME/VERSION/card.json                 what the model is
                       weights.safetensors       the network
                       calibration.safetensors   the validation scores, the search starts, and the golden rows
                       fingerprints.safetensors  of the training rows, for `vouch calibrate`; readable by its owner alone
                       manifest.json             sha256 and size of each, written last
    STORE/aliases.json                           the default model, and names for versions

A version exists whole or not at all (`storage.py`). Loading checks every hash before a byte is used. Nothing is ever
unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.density.estimate import Member
from service.errors import CalibrationError, DamagedModelError, ModelConflictError, ModelNotFoundError, UnavailableError
from service.scoring.fingerprints import Fingerprints
from service.scoring.model import Model
from service.scoring.version import Card, Draft, Published, Reference
from service.store.serialization import (
    FINGERPRINTS,
    contents_of,
    fingerprints_in,
    first_line,
    load_calibration,
    load_networks,
)
from service.store.storage import MANIFEST, NAME, VERSION, LocalStorage, Storage, storage_of
from service.system.frozen import Frozen

CARD = "card.json"
FILES = (CARD, "weights.safetensors", "calibration.safetensors")
ALIASES = "aliases.json"
PRODUCTION = "production"  # the alias that a bare name means
MAX_FILE_BYTES, MAX_CARD = 2**30, 2**25
MAX_MANIFEST = MAX_ALIASES = 2**20
ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,63}")


class FileEntry(Frozen):
    """A file's entry in the manifest; size in bytes."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Manifest(Frozen):
    """A version's manifest: its files by name."""

    files: dict[str, FileEntry]


class Aliases(BaseModel):
    """aliases.json: the default model, and each model's names for versions."""

    model_config = ConfigDict(extra="forbid")

    default: str | None = None
    aliases: dict[str, dict[str, str]] = {}


@dataclass(frozen=True)
class Catalog:
    """A snapshot of a store: versions by name, oldest first, aliases, the default, and what a bare name means.

    `serving` maps a model to the version that its alias `production` names or, without one, to its newest version.
    """

    versions: dict[str, tuple[str, ...]]
    aliases: dict[str, dict[str, str]]
    default: str | None
    serving: dict[str, str]

    @staticmethod
    def of(versions: dict[str, list[str]], aliases: Aliases) -> Catalog:
        """The catalog of these versions and aliases."""
        named = {name: aliases.aliases.get(name, {}) for name in versions}
        serving = {name: named[name].get(PRODUCTION, numbers[-1]) for name, numbers in versions.items()}
        return Catalog({name: tuple(numbers) for name, numbers in versions.items()}, named, aliases.default, serving)

    def names(self) -> list[str]:
        """The models that have at least one version."""
        return sorted(self.versions)

    def default_name(self) -> str:
        """The model used if none is named."""
        if self.default is not None:
            return self.default
        names = self.names()
        if len(names) == 1:
            return names[0]
        raise ModelNotFoundError("the store has no default model: name one" if names else "the store is empty")

    def resolve(self, name: str | None = None) -> Reference:
        """Which version `NAME`, `NAME@VERSION` or `NAME@ALIAS` means; None is the default model.

        A version number is accepted even if the catalog does not have it: the version may be half-written, or new.

        Raises:
            ModelNotFoundError: there is no such model or alias, or the name is invalid.
        """
        name, _, wanted = (name if name is not None else self.default_name()).partition("@")
        checked_name(name)
        if wanted and VERSION.fullmatch(wanted):
            return Reference(name, wanted)
        if name not in self.versions:
            raise ModelNotFoundError(f"no such model in the store; it has: {', '.join(self.names()) or 'none'}")
        if not wanted:
            return Reference(name, self.serving[name])
        aliases = self.aliases[name]
        if wanted not in aliases:
            raise ModelNotFoundError(
                f"model {name!r} has no such alias; it has: {', '.join(aliases) or 'none'}; a version is a number"
            )
        return Reference(name, aliases[wanted])

    def targets(self, name: str) -> set[Reference]:
        """The versions that a model's bare name and its aliases refer to."""
        return {Reference(name, version) for version in (self.serving[name], *self.aliases[name].values())}


class Store:
    """Models in a folder, or at an fsspec URL.

    Args:
        cache: folder that caches files of a remote store by their sha256; None: no cache.
    """

    def __init__(self, root: str | os.PathLike[str], cache: Path | None = None) -> None:
        self.storage = storage_of(os.fspath(root), cache)
        self.calls: dict[int, float] = {}  # by thread, when a call of the storage began that has not returned

    def silent_s(self) -> float:
        """For how many seconds the storage has owed an answer; 0 if it owes none."""
        return time.monotonic() - min(self.calls.copy().values(), default=time.monotonic())

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """Around a call of the storage, which may hang: a mount may have stalled.

        Raises:
            UnavailableError: the storage cannot be reached.
        """
        self.calls[threading.get_ident()] = time.monotonic()
        try:
            yield
        except OSError as error:
            raise UnavailableError(f"the store cannot be read: {type(error).__name__}", 30.0) from error
        finally:
            del self.calls[threading.get_ident()]

    @property
    def root(self) -> Path:
        """The folder of a local store."""
        assert isinstance(self.storage, LocalStorage)
        return self.storage.root

    def catalog(self) -> Catalog:
        """A snapshot of what the store holds now.

        Raises:
            DamagedModelError: aliases.json cannot be read.
            UnavailableError: the storage cannot be reached.
        """
        with self.calling():
            return Catalog.of(self.storage.versions(), self.aliases())

    def names(self) -> list[str]:
        """The models that have at least one version."""
        return self.catalog().names()

    def versions(self, name: str) -> list[str]:
        """A model's published versions, oldest first. A folder without a manifest is unfinished and left out."""
        return list(self.catalog().versions.get(checked_name(name), ()))

    def resolve(self, name: str | None = None) -> Reference:
        """Which version `NAME`, `NAME@VERSION` or `NAME@ALIAS` means (`Catalog.resolve`)."""
        catalog = self.catalog()
        reference = catalog.resolve(name)
        self.check_holds(reference, catalog)
        return reference

    def check_holds(self, reference: Reference, catalog: Catalog) -> None:
        """Raise if a version does not exist at all; a half-written one exists, and is damaged."""
        versions = catalog.versions.get(reference.name, ())
        if reference.version in versions:
            return
        with self.calling():
            is_there = self.storage.holds(reference.name, reference.version)
        if not is_there:
            known = ", ".join(versions) or "none"
            raise ModelNotFoundError(f"model {reference.name!r} has no version {reference.version}; it has: {known}")

    def aliases(self) -> Aliases:
        """The default model and the aliases."""
        try:
            return Aliases.model_validate_json(self.storage.read(ALIASES, MAX_ALIASES))
        except FileNotFoundError:
            return Aliases()
        except (ValidationError, OSError) as error:
            raise DamagedModelError(f"{ALIASES} is damaged: {first_line(error)}") from error

    def load(self, reference: Reference) -> Published:
        """Read a version and check every hash.

        Raises:
            DamagedModelError: names the version and the file that is missing, truncated or altered.
            CalibrationError: its thresholds belong to another estimator.
        """
        with self.calling():
            if not self.storage.holds(checked_name(reference.name), reference.version):
                raise ModelNotFoundError(f"model {reference} is not in the store")
            contents, digest = verified_files(self.storage, reference)
        try:
            card = Card.model_validate_json(contents["card.json"])
        except ValidationError as error:
            raise DamagedModelError(f"{reference}: card.json cannot be read: {first_line(error)}") from error
        if (card.name, card.version) != (reference.name, reference.version):
            raise DamagedModelError(f"{reference}: card.json is that of {card.name}@{card.version}")
        vaes = load_networks(card, contents["weights.safetensors"])
        calibration, all_starts, golden = load_calibration(card, contents["calibration.safetensors"])
        members = tuple(Member(vae, starts) for vae, starts in zip(vaes, all_starts, strict=True))
        model = Model(card.input, card.estimator, members)
        try:
            calibration.check_belongs_to(model)
        except CalibrationError as error:
            raise CalibrationError(f"{reference}: {error}") from error
        return Published(reference, digest, card, model, calibration, golden)

    def fingerprints(self, reference: Reference) -> Fingerprints | None:
        """The fingerprints of the rows that a version was trained on; None if it keeps none.

        Raises:
            DamagedModelError: they are damaged.
        """
        folder = f"{reference.name}/{reference.version}"
        with self.calling():
            manifest = Manifest.model_validate_json(self.storage.read(f"{folder}/{MANIFEST}", MAX_MANIFEST))
            if FINGERPRINTS not in manifest.files:
                return None
            try:
                self.storage.read(f"{folder}/{FINGERPRINTS}", 1)
            except FileNotFoundError:
                return None  # a store that only serves needs none
            content = verified_file(self.storage, folder, FINGERPRINTS, manifest.files[FINGERPRINTS], str(reference))
        try:
            return fingerprints_in(content)
        except ValueError as error:
            raise DamagedModelError(f"{reference}: {FINGERPRINTS} cannot be read") from error

    def publish(self, name: str, draft: Draft) -> Reference:
        """Publish a new version of a model under the next number; existing versions are untouched.

        Raises:
            CalibrationError: the thresholds belong to another estimator.
            ModelConflictError: another writer published the same version meanwhile.
        """
        draft.calibration.check_belongs_to(draft.model)
        reference = Reference(checked_name(name), self.storage.next_version(name))
        contents = contents_of(reference, draft)
        self.storage.publish(name, contents, manifest_of(contents), reference.version)
        return reference

    def set_alias(self, name: str, alias: str, version: str, expected: str | None = None) -> Aliases:
        """Point an alias at a version, in one step.

        Args:
            expected: if given, the version that the alias must name now.

        Raises:
            ModelNotFoundError: no such version.
            ModelConflictError: the alias names another version than `expected`, or is not a valid alias.
        """
        if not ALIAS.fullmatch(alias):
            raise ModelConflictError("an alias must be lower-case letters, digits, - and _, starting with a letter")
        if version not in self.versions(name):
            raise ModelNotFoundError(f"model {name!r} has no such version; it has: {', '.join(self.versions(name))}")
        with self.calling(), self.storage.locked():
            aliases = self.aliases()
            current = aliases.aliases.get(name, {}).get(alias)
            if expected is not None and current != expected:
                raise ModelConflictError(f"alias {alias!r} of {name!r} names version {current}, not the expected one")
            aliases.aliases.setdefault(name, {})[alias] = version
            self.write_aliases(aliases)
        return aliases

    def set_default(self, name: str) -> None:
        """Make a model the default, which is used if none is named."""
        if not self.versions(name):
            raise ModelNotFoundError(f"no model {name!r} in the store")
        with self.storage.locked():
            aliases = self.aliases()
            aliases.default = name
            self.write_aliases(aliases)

    def write_aliases(self, aliases: Aliases) -> None:
        """Replace aliases.json in one step; the caller holds the lock."""
        self.storage.replace(ALIASES, (aliases.model_dump_json(indent=2) + "\n").encode())


def checked_name(name: str) -> str:
    """Return the name if it is valid: it becomes a folder name."""
    if not NAME.fullmatch(name):
        raise ModelNotFoundError(
            "no such model: a name has 1 to 64 lower-case letters, digits, - and _, and starts with a letter or digit"
        )
    return name


def verified_files(storage: Storage, reference: Reference) -> tuple[dict[str, bytes], str]:
    """The contents of a version's files, verified against the manifest, and the version's digest."""
    folder = f"{reference.name}/{reference.version}"
    try:
        manifest_bytes = storage.read(f"{folder}/{MANIFEST}", MAX_MANIFEST)
        manifest = Manifest.model_validate_json(manifest_bytes)
    except FileNotFoundError as error:
        raise DamagedModelError(f"{reference}: {MANIFEST} is missing: the version is half-written") from error
    except (ValidationError, OSError) as error:
        raise DamagedModelError(f"{reference}: {MANIFEST} cannot be read: {first_line(error)}") from error
    contents = {}
    for name in FILES:
        if name not in manifest.files:
            raise DamagedModelError(f"{reference}: {MANIFEST} does not list {name}")
        contents[name] = verified_file(storage, folder, name, manifest.files[name], str(reference))
    return contents, f"sha256:{hashlib.sha256(manifest_bytes).hexdigest()}"


def verified_file(storage: Storage, folder: str, name: str, entry: FileEntry, label: str) -> bytes:
    """A file's content; raise unless it has its entry's size and hash."""
    most = MAX_CARD if name == CARD else MAX_FILE_BYTES
    if entry.size > most:
        raise DamagedModelError(f"{label}: {MANIFEST} declares {entry.size} bytes for {name}, at most {most} allowed")
    try:
        content = storage.read_hashed(f"{folder}/{name}", entry.sha256, entry.size)
    except OSError as error:
        raise DamagedModelError(f"{label}: {name} is missing or cannot be read") from error
    if len(content) != entry.size:
        has = "more" if len(content) > entry.size else f"only {len(content)}"
        raise DamagedModelError(f"{label}: {name} has {has} bytes, {MANIFEST} says {entry.size}")
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise DamagedModelError(f"{label}: the sha256 of {name} differs from {MANIFEST}")
    return content


def manifest_of(contents: dict[str, bytes]) -> bytes:
    files = {
        name: FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        for name, content in contents.items()
    }
    return (Manifest(files=files).model_dump_json(indent=2) + "\n").encode()
