"""Where a store's files are: a folder, or any place that fsspec reaches (`s3://bucket/models`).

A storage holds NAME/VERSION folders of files, and a few files beside them. A version is there when its manifest is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from service.errors import DataError, ModelConflictError, UnavailableError
from service.system.files import as_os_error, is_url, sync_folder, write_remote, write_synced, write_whole

MANIFEST = "manifest.json"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
ABANDONED_S = 3600.0  # after which a half-written folder is nobody's any more
log = logging.getLogger("vouch")


class Storage(Protocol):
    """What a store needs of the place where its files are."""

    def versions(self) -> dict[str, list[str]]:
        """Every model's published versions, oldest first; a model without any is left out."""

    def holds(self, name: str, version: str) -> bool:
        """Whether there is anything of this version, be it half-written."""

    def read(self, path: str, most: int) -> bytes:
        """The first bytes of a file, `most` of them at most.

        Raises:
            OSError: it is not there or cannot be read.
        """

    def read_hashed(self, path: str, sha256: str, size: int) -> bytes:
        """A file that should have this hash and size; one byte more than that is enough to tell. As `read`."""

    def publish(self, name: str, contents: dict[str, bytes], manifest: bytes, version: str) -> None:
        """Put a version there, whole or not at all.

        Raises:
            ModelConflictError: it is there already.
        """

    def next_version(self, name: str) -> str:
        """The number after the newest."""

    def replace(self, path: str, content: bytes) -> None:
        """Write a file, the old one or the new one at any moment."""

    def locked(self) -> AbstractContextManager[None]:
        """Keep other writers out, as far as the place can."""


def storage_of(root: str, cache: Path | None = None) -> Storage:
    """The storage of a folder or of an fsspec URL.

    Args:
        cache: folder in which files from afar are kept by their digest; None: nowhere.

    Raises:
        DataError: a URL without fsspec, or one that it cannot use.
    """
    return RemoteStorage(root, cache) if is_url(root) else LocalStorage(Path(root))


class LocalStorage:
    """A folder. Writers exclude each other by a lock, versions are renamed into place."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def versions(self) -> dict[str, list[str]]:
        """Every model's published versions, oldest first."""
        # A root that cannot be listed is an error: to take it for an empty one would stop serving what is there.
        names = [entry.name for entry in os.scandir(self.root) if NAME.fullmatch(entry.name)]
        found = {name: sorted(self.of(name), key=int) for name in names}
        return {name: versions for name, versions in sorted(found.items()) if versions}

    def of(self, name: str) -> list[str]:
        """A model's published versions."""
        folder = self.root / name
        return [entry for entry in entries(folder) if VERSION.fullmatch(entry) and is_there(folder / entry / MANIFEST)]

    def holds(self, name: str, version: str) -> bool:
        """Whether there is a folder for it."""
        return (self.root / name / version).is_dir()

    def read(self, path: str, most: int) -> bytes:
        """The first bytes of a file."""
        with (self.root / path).open("rb") as file:
            return file.read(most)

    def read_hashed(self, path: str, sha256: str, size: int) -> bytes:
        """A file, whose hash the caller checks."""
        return self.read(path, size + 1)

    def next_version(self, name: str) -> str:
        """The number after the newest, finished or not."""
        taken = [int(entry) for entry in entries(self.root / name) if VERSION.fullmatch(entry)]
        return str(max(taken, default=0) + 1)

    def publish(self, name: str, contents: dict[str, bytes], manifest: bytes, version: str) -> None:
        """Write into a temporary folder, sync, and rename it to the version's number."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        temporary = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=folder))
        try:
            temporary.chmod(0o755)  # mkdtemp's 0700 would hide the version from a service of another user
            for file, content in {**contents, MANIFEST: manifest}.items():
                write_synced(temporary / file, content)
            sync_folder(temporary)
            try:
                temporary.rename(folder / version)
            except OSError as error:
                raise already_there(name, version) from error
            sync_folder(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def replace(self, path: str, content: bytes) -> None:
        """Write the new one, and rename it over the old one."""
        write_whole(self.root / path, content)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("w")
        except OSError as error:
            raise UnavailableError(f"the store cannot be written: {type(error).__name__}", 60.0) from error
        with lock, as_unavailable():
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class RemoteStorage:
    """Any place that fsspec reaches.

    There are no renames and no locks to rely on: a version's number is claimed first, its manifest is written last, and
    of two who move aliases at once the later one wins.
    """

    def __init__(self, url: str, cache: Path | None) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise DataError(
                "a store at a URL needs fsspec and its driver: pip install '.[remote]', and s3fs for s3://"
            ) from error
        try:
            # Listings are not cached: somebody else may publish.
            self.files, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise DataError(f"the store's URL cannot be used: {error}") from error
        self.cache = cache

    def at(self, *path: str) -> str:
        """A path below the root."""
        return "/".join((self.root.rstrip("/"), *path))

    def versions(self) -> dict[str, list[str]]:
        """Every model's published versions, oldest first."""
        found: dict[str, list[str]] = {}
        with as_os_error():
            for path in sorted(self.files.glob(self.at("*", "*", MANIFEST))):
                *_, name, version, _ = path.split("/")
                if NAME.fullmatch(name) and VERSION.fullmatch(version):
                    found.setdefault(name, []).append(version)
        return {name: sorted(versions, key=int) for name, versions in found.items()}

    def holds(self, name: str, version: str) -> bool:
        """Whether anything is there."""
        with as_os_error():
            return bool(self.files.exists(self.at(name, version)))

    def read(self, path: str, most: int) -> bytes:
        """The first bytes of a file."""
        with as_os_error():
            content: bytes = self.files.cat_file(self.at(path), start=0, end=most)
            return content

    def read_hashed(self, path: str, sha256: str, size: int) -> bytes:
        """A file, from the cache where it is there unharmed."""
        kept = None if self.cache is None else self.cache / sha256
        if kept is not None:
            with contextlib.suppress(OSError):
                content = kept.read_bytes()
                if hashlib.sha256(content).hexdigest() == sha256:
                    return content
        content = self.read(path, size + 1)
        if kept is not None and hashlib.sha256(content).hexdigest() == sha256:
            keep(kept, content)
        return content

    def next_version(self, name: str) -> str:
        """The number after the newest, finished or not."""
        with as_os_error():
            try:
                taken = [path.rstrip("/").rsplit("/", 1)[-1] for path in self.files.ls(self.at(name), detail=False)]
            except FileNotFoundError:
                taken = []
        return str(max((int(entry) for entry in taken if VERSION.fullmatch(entry)), default=0) + 1)

    def publish(self, name: str, contents: dict[str, bytes], manifest: bytes, version: str) -> None:
        """Claim the number, write the files, and the manifest last."""
        folder = self.at(name, version)
        with as_os_error():
            self.files.makedirs(folder, exist_ok=True)
            try:
                self.files.pipe_file(f"{folder}/.claim", os.urandom(16).hex().encode(), mode="create")
            except FileExistsError as error:
                raise already_there(name, version) from error
            for file, content in {**contents, MANIFEST: manifest}.items():
                self.files.pipe_file(f"{folder}/{file}", content)

    def replace(self, path: str, content: bytes) -> None:
        """Put the new one over the old one."""
        write_remote(self.files, self.at(path), content)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No lock is to be had; a place that cannot be written is said to be so."""
        with as_unavailable():
            yield


@contextlib.contextmanager
def as_unavailable() -> Iterator[None]:
    """A place that cannot be written."""
    try:
        yield
    except OSError as error:
        raise UnavailableError(f"the store cannot be written: {type(error).__name__}", 60.0) from error


def entries(folder: Path) -> list[str]:
    """The names in a folder; none, if it is not there or may not be read."""
    try:
        return [entry.name for entry in os.scandir(folder)]
    except OSError:
        return []


def is_there(path: Path) -> bool:
    """Whether a file is there; one in a folder that may not be entered is not."""
    try:
        return path.is_file()
    except OSError as error:
        log.warning("a version cannot be looked at", extra={"path": str(path), "error": type(error).__name__})
        return False


def sweep(folder: Path) -> None:
    """Remove what writers left behind that were killed."""
    for entry in folder.glob(".[1-9]*-*"):
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(entry, ignore_errors=True)


def already_there(name: str, version: str) -> ModelConflictError:
    """Somebody else was first."""
    return ModelConflictError(f"{name}@{version} exists already: somebody published it meanwhile")


def keep(path: Path, content: bytes) -> None:
    """Put a file into the cache. Without a writable cache, files are fetched each time."""
    try:
        write_whole(path, content)
    except OSError as error:
        log.warning("a file of the store is not kept in the cache", extra={"error": str(error)})
