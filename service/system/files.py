"""Files written whole or not at all, in a folder or through fsspec."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from service.errors import VouchError


def write_whole(path: Path, content: bytes, temporary_folder: Path | None = None, mode: int | None = None) -> None:
    """Replace a file atomically: at any moment the old or the new content is there in full and on the disk.

    Missing folders are created. No temporary file is left behind, unless the process itself is killed.

    Args:
        mode: the file's permissions; default: the umask's for new files.
        temporary_folder: where the new file is written before it is renamed, on the same disk; default: the
            target's folder.

    Raises:
        OSError: it cannot be written; the old file is untouched.
    """
    with written_whole(path, temporary_folder, mode) as file:
        file.write(content)


@contextlib.contextmanager
def written_whole(path: Path, temporary_folder: Path | None = None, mode: int | None = None) -> Iterator[BinaryIO]:
    """A new file that replaces another when the `with` block ends, as `write_whole`; after an error the old one stays."""
    folder = temporary_folder or path.parent
    for one in (path.parent, folder):
        one.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid.uuid4().hex}"
    try:
        with new_synced(temporary, mode) as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def read_regular(path: Path, most: int) -> bytes:
    """The first bytes of a file, at most `most`. Only of a regular one: a named pipe would be waited for without end.

    Raises:
        OSError: it is missing, not a regular file, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read(most)


def write_remote(files: Any, path: str, content: bytes) -> None:
    """Write a file to an fsspec filesystem; it appears only once it is complete.

    Raises:
        OSError: it cannot be written.
    """
    with as_os_error():
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, content)


@contextlib.contextmanager
def new_synced(path: Path, mode: int | None = None) -> Iterator[BinaryIO]:
    """A new file, which is synced to disk at the end of the `with` block."""
    with path.open("xb") as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_synced(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write a new file and sync it to disk."""
    with new_synced(path, mode) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def as_os_error() -> Iterator[None]:
    """Turn whatever a filesystem driver raises into an OSError, whose text may name the path or URL."""
    try:
        yield
    except (OSError, VouchError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def is_url(root: str) -> bool:
    """Whether a root is a URL rather than a folder."""
    return "://" in root
