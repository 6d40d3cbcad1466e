"""The files of a data set and the folder of its results, at local paths or fsspec URLs."""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from service.errors import DataError
from service.system.files import as_os_error, is_url, write_remote, write_whole

CHUNK = 2**23  # bytes read at a time
TEMPORARY = ".vouch/tmp"


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of a data set: its path or URL, and its name relative to the data set's root."""

    path: str
    name: str

    def open(self) -> IO[bytes]:
        with as_os_error():
            files, path = fsspec.core.url_to_fs(self.path)
            opened: IO[bytes] = files.open(path, "rb")
            return opened

    @property
    def is_local(self) -> bool:
        """Whether it is a local path."""
        return not is_url(self.path)

    def version(self) -> str:
        """A hash of what its filesystem reports: size, time, ETag. Enough to identify a remote file's version."""
        with as_os_error():
            files, path = fsspec.core.url_to_fs(self.path)
            return f"version:{hashlib.sha256(str(files.ukey(path)).encode()).hexdigest()}"

    def digest(self) -> str:
        """sha256 of the content; for a remote file, its version."""
        if not self.is_local:
            return self.version()
        content = hashlib.sha256()
        with self.open() as file:
            while chunk := file.read(CHUNK):
                content.update(chunk)
        return f"sha256:{content.hexdigest()}"

    @property
    def suffix(self) -> str:
        """Its extension, in lower case; two of them if it is packed, such as .csv.gz."""
        return suffix_of(self.name)

    def sample(self, size: int) -> bytes:
        """The first bytes of its content."""
        with self.open() as file:
            return file.read(size)


@dataclass(frozen=True, slots=True)
class UnpackedFile(InputFile):
    """A gzip file of a data set, read as what it contains."""

    def open(self) -> IO[bytes]:
        unpacked: Any = gzip.GzipFile(fileobj=InputFile.open(self))
        opened: IO[bytes] = unpacked
        return opened


def suffix_of(name: str) -> str:
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def found(source: str, suffixes: frozenset[str]) -> list[InputFile]:
    """The files of a data set (a file, a folder or a glob), sorted by path.

    In a folder, files with other suffixes are skipped, and so are hidden ones: names that start with a dot or an
    underscore.

    Raises:
        DataError: there are no files.
        OSError: the source cannot be read.
    """
    with as_os_error():
        files, root = reached(source)
        if files.isfile(root):
            paths, root = [root], root.rpartition("/")[0]
        elif files.isdir(root):
            paths = [path for path in files.find(root) if is_data(path.removeprefix(root), suffixes)]
        elif glob.has_magic(root):
            pattern, root = root, fixed_part(root)
            paths = [path for path in files.glob(pattern) if "/." not in path.removeprefix(root) and files.isfile(path)]
        else:
            raise DataError(f"{source}: no such file or folder")
        if not paths:
            raise DataError(f"{source}: holds no files that end in {', '.join(sorted(suffixes))}")
        return [
            InputFile(files.unstrip_protocol(path) if is_url(source) else path, path.removeprefix(root).lstrip("/"))
            for path in sorted(paths)
        ]


def reached(source: str) -> tuple[Any, str]:
    """The filesystem of a path or URL, and the path within it.

    Raises:
        DataError: no driver is installed for such URLs.
    """
    try:
        files, path = fsspec.core.url_to_fs(source if is_url(source) else os.path.abspath(source))
    except (ImportError, ValueError) as error:
        raise DataError(f"{source.partition('://')[0]}://...: no driver for this kind of URL: {error}") from None
    return files, path.rstrip("/") or "/"


def is_data(name: str, suffixes: frozenset[str]) -> bool:
    """Whether a file in a folder is part of the data set."""
    path = PurePosixPath(name)
    return suffix_of(name) in suffixes and not any(part.startswith((".", "_")) for part in path.parts)


def fixed_part(pattern: str) -> str:
    """The folder part of a glob, before its first wildcard."""
    parts = pattern.split("/")
    first = next(at for at, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:first])


class OutFolder:
    """The folder of a run's results. Files in it appear whole or not at all, even with concurrent writers."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.files, self.path = reached(root)

    @property
    def is_local(self) -> bool:
        """Whether it is a local folder, where files are renamed into place; remote ones appear once written."""
        return isinstance(self.files, LocalFileSystem)

    @property
    def absolute(self) -> str:
        """Its path or URL, valid from any working directory."""
        return self.path if self.is_local else self.root

    def holds(self, file: InputFile) -> bool:
        """Whether a file lies in this folder."""
        return reached(file.path)[1].startswith(f"{self.path}/") and file.is_local == self.is_local

    def at(self, name: str) -> str:
        return f"{self.path}/{name}"

    def names(self) -> set[str]:
        """Paths of all files, relative to the folder."""
        with as_os_error():
            self.files.invalidate_cache()
            listed = self.files.find(self.path) if self.files.isdir(self.path) else []
            return {path.removeprefix(self.path).lstrip("/") for path in listed}

    def read(self, name: str) -> bytes:
        with as_os_error():
            content: bytes = self.files.cat_file(self.at(name))
            return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all.

        Raises:
            OSError: names the file.
        """
        try:
            if self.is_local:
                write_whole(Path(self.at(name)), content, Path(self.at(TEMPORARY)))
            else:
                write_remote(self.files, self.at(name), content)
        except OSError as error:
            raise OSError(f"{self.root}/{name}: cannot be written: {error.strerror or error}") from error

    def remove(self, folder: str) -> None:
        """Remove a folder if it exists."""
        with as_os_error():
            if self.files.exists(self.at(folder)):
                self.files.rm(self.at(folder), recursive=True)
