"""Where a store's files are: a folder, or anything that fsspec reaches (`s3://bucket/models`).

A storage holds NAME/VERSION folders of files, and a few files at its root. A version exists once its manifest does.
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
from typing import IO, Protocol

from service.errors import DataError, ModelConflictError, UnavailableError
from service.system.files import as_os_error, is_url, read_regular, sync_folder, write_remote, write_synced, write_whole

MANIFEST = "manifest.json"
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
PRIVATE = {"fingerprints.safetensors": 0o600}  # files of a version that only their owner may read
LOCK_S = 30.0  # how long to wait for another writer
ABANDONED_S = 3600.0  # after which a half-written folder counts as abandoned
log = logging.getLogger("vouch")


class Storage(Protocol):
    """What a store needs from its storage."""

    def versions(self) -> dict[str, list[str]]:
        """Every model's published versions, oldest first; a model without any is left out."""

    def holds(self, name: str, version: str) -> bool:
        """Whether anything of this version exists, even if it is half-written."""

    def read(self, path: str, most: int) -> bytes:
        """The first bytes of a file, at most `most`.

        Raises:
            OSError: it does not exist or cannot be read.
        """

    def read_hashed(self, path: str, sha256: str, size: int) -> bytes:
        """A file that should have this hash and size, read up to one byte beyond the size. Raises as `read`."""

    def publish(self, name: str, contents: dict[str, bytes], manifest: bytes, version: str) -> None:
        """Write a version, whole or not at all.

        Raises:
            ModelConflictError: it already exists.
        """

    def next_version(self, name: str) -> str:
        """The version number after the newest."""

    def replace(self, path: str, content: bytes) -> None:
        """Replace a file: at any moment the old or the new content is there."""

    def locked(self) -> AbstractContextManager[None]:
        """Keep other writers out, as far as the storage can."""


def storage_of(root: str, cache: Path | None = None) -> Storage:
    """The storage of a folder or of an fsspec URL.

    Args:
        cache: folder that caches files of a remote store by their sha256; None: no cache.

    Raises:
        DataError: fsspec is not installed, or cannot use the URL.
    """
    return RemoteStorage(root, cache) if is_url(root) else LocalStorage(Path(root))


class LocalStorage:
    """A folder. Writers exclude each other by a lock, and versions are renamed into place."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def versions(self) -> dict[str, list[str]]:
        # A root that cannot be listed is an error: to take it for an empty one would stop serving what is there.
        names = [entry.name for entry in os.scandir(self.root) if NAME.fullmatch(entry.name)]
        found = {name: sorted(self.of(name), key=int) for name in names}
        return {name: versions for name, versions in sorted(found.items()) if versions}

    def of(self, name: str) -> list[str]:
        folder = self.root / name
        return [entry for entry in entries(folder) if VERSION.fullmatch(entry) and is_there(folder / entry / MANIFEST)]

    def holds(self, name: str, version: str) -> bool:
        return (self.root / name / version).is_dir()

    def read(self, path: str, most: int) -> bytes:
        return read_regular(self.root / path, most)

    def read_hashed(self, path: str, sha256: str, size: int) -> bytes:
        """A file; the caller checks its hash."""
        return self.read(path, size + 1)

    def next_version(self, name: str) -> str:
        """The number after the newest, including unfinished versions."""
        taken = [int(entry) for entry in entries(self.root / name) if VERSION.fullmatch(entry)]
        return str(max(taken, default=0) + 1)

    def publish(self, name: str, contents: dict[str, bytes], manifest: bytes, version: str) -> None:
        """Write to a temporary folder, sync, and rename it to the version number."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        temporary = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=folder))
        try:
            temporary.chmod(0o755)  # mkdtemp's 0700 would hide the version from a service that runs as another user
            for file, content in {**contents, MANIFEST: manifest}.items():
                write_synced(temporary / file, content, PRIVATE.get(file))
            sync_folder(temporary)
            try:
                temporary.rename(folder / version)
            except OSError as error:
                raise already_there(name, version) from error
            sync_folder(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def replace(self, path: str, content: bytes) -> None:
        write_whole(self.root / path, content)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("w")
        except OSError as error:
            raise UnavailableError(f"the store cannot be written: {type(error).__name__}", 60.0) from error
        with lock, as_unavailable():
            acquire(lock)
            yield


class RemoteStorage:
    """Anything that fsspec reaches.

    There are no renames and no locks to rely on: a version's number is claimed first and its manifest is written last.
    If two writers move aliases at once, the later one wins.
    """

    def __init__(self, url: str, cache: Path | None) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise DataError(
                "a store at a URL needs fsspec and its driver: pip install '.[remote]', and s3fs for s3://"
            ) from error
        try:
            # Listings are not cached: others may publish.
            self.files, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise DataError(f"the store's URL cannot be used: {error}") from error
        self.cache = cache

    def at(self, *path: str) -> str:
        return "/".join((self.root.rstrip("/"), *path))

    def versions(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        with as_os_error():
            for path in sorted(self.files.glob(self.at("*", "*", MANIFEST))):
                *_, name, version, _ = path.split("/")
                if NAME.fullmatch(name) and VERSION.fullmatch(version):
                    found.setdefault(name, []).append(version)
        return {name: sorted(versions, key=int) for name, versions in found.items()}

    def holds(self, name: str, version: str) -> bool:
        with as_os_error():
            return bool(self.files.exists(self.at(name, version)))

    def read(self, path: str, most: int) -> bytes:
        with as_os_error():
            content: bytes = self.files.cat_file(self.at(path), start=0, end=most)
            return content

    def read_hashed(self, path: str, sha256: str, size: int) -> bytes:
        """A file, from the cache if an intact copy is there."""
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
        """The number after the newest, including unfinished versions."""
        with as_os_error():
            try:
                taken = [path.rstrip("/").rsplit("/", 1)[-1] for path in self.files.ls(self.at(name), detail=False)]
            except FileNotFoundError:
                taken = []
        return str(max((int(entry) for entry in taken if VERSION.fullmatch(entry)), default=0) + 1)

    def publish(self, name: str, contents: dict[str, bytes], manifest: bytes, version: str) -> None:
        """Claim the number, write the files, and write the manifest last."""
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
        write_remote(self.files, self.at(path), content)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No lock is available; failed writes raise UnavailableError."""
        with as_unavailable():
            yield


def acquire(lock: IO[str]) -> None:
    """Lock a file as soon as nobody else has it locked.

    Raises:
        UnavailableError: somebody has it for too long.
    """
    until = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise UnavailableError("another writer has the store locked", 30.0) from None
            time.sleep(0.05)


@contextlib.contextmanager
def as_unavailable() -> Iterator[None]:
    """Turn failed writes into UnavailableError."""
    try:
        yield
    except OSError as error:
        raise UnavailableError(f"the store cannot be written: {type(error).__name__}", 60.0) from error


def entries(folder: Path) -> list[str]:
    """The names in a folder; empty if it does not exist or cannot be read."""
    try:
        return [entry.name for entry in os.scandir(folder)]
    except OSError:
        return []


def is_there(path: Path) -> bool:
    """Whether a file exists; False, with a warning, if its folder cannot be entered."""
    try:
        return path.is_file()
    except OSError as error:
        log.warning("cannot read a version", extra={"path": str(path), "error": type(error).__name__})
        return False


def sweep(folder: Path) -> None:
    """Remove what killed writers left behind."""
    for entry in folder.glob(".[1-9]*-*"):
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(entry, ignore_errors=True)


def already_there(name: str, version: str) -> ModelConflictError:
    return ModelConflictError(f"{name}@{version} already exists: it was published meanwhile")


def keep(path: Path, content: bytes) -> None:
    """Write a file to the cache. Without a writable cache, files are fetched each time."""
    try:
        write_whole(path, content)
    except OSError as error:
        log.warning("cannot write to the cache", extra={"error": str(error)})
