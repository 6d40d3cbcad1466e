"""The chain: each record's HMAC covers the record before it, under a key that the file does not hold.

    mac(n) = HMAC-SHA256(key, mac(n - 1) | record n)

Whoever lacks the key can neither change a record nor take one out, nor compute the chain anew. That the last ones are gone
shows by a seal: the number and the mac of the last record, under another key. A whole earlier state of all files, seal and
all, verifies; only a head that was kept elsewhere tells.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from service.errors import JournalError
from service.system.files import read_regular

LEAST_KEY, MOST_KEY = 32, 4096  # bytes of the key's file
HASH_BYTES = 16
FILE = "file"  # the name of a head in a file of its own
START = bytes(32)  # in place of the mac before the first record
ENCODER = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it is stored: what its mac covers.

    Attributes:
        number: 1, 2, 3, ... without a gap.
        time: milliseconds since the epoch.
        batch: of verdicts, the first part of their record ids.
        request: the id of the request that it belongs to.
        content: msgpack (`service.journal.contents`).
    """

    number: int
    time: int
    kind: str
    batch: int | None
    request: str | None
    content: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """The last record of a chain, or the last one that was pruned: its number and its mac."""

    number: int
    mac: bytes

    def __str__(self) -> str:
        return f"{self.number}:{self.mac.hex()}"

    @staticmethod
    def parse(text: str) -> Head:
        """A head as it is printed, NUMBER:HASH.

        Raises:
            JournalError: it is none.
        """
        number, _, mac = text.strip().partition(":")
        try:
            if not (number.isdecimal() and len(number) < 19 and len(mac) == 2 * len(START)):
                raise ValueError
            return Head(int(number), bytes.fromhex(mac))
        except ValueError:
            raise JournalError("expected a head as `vouch journal verify` prints it: NUMBER:HASH") from None


EMPTY = Head(0, START)


@dataclass(frozen=True, slots=True)
class JournalKey:
    """The keys of a journal, all derived from one file: for the chain, its seals, and hashes of rows and notes."""

    chain: bytes
    seals: bytes
    hashes: bytes

    @staticmethod
    def read(path: Path) -> JournalKey:
        """The keys from a file of at least 32 random bytes, or hexadecimal digits.

        Raises:
            JournalError: it cannot be read, or is too short.
        """
        try:
            secret = read_regular(path, MOST_KEY).strip()
        except OSError as error:
            raise JournalError(f"{path}: the journal's key cannot be read: {type(error).__name__}") from error
        if len(secret) < LEAST_KEY:
            raise JournalError(
                f"{path}: the journal's key has {len(secret)} bytes, expected at least {LEAST_KEY}: "
                f"`openssl rand -hex 32 > {path}` makes one"
            )
        return JournalKey.of(secret)

    @staticmethod
    def of(secret: bytes) -> JournalKey:
        """The keys from a secret."""
        names = (b"chain", b"seals", b"hashes")
        return JournalKey(*(hmac.digest(secret, b"vouch journal: " + name, "sha256") for name in names))

    def mac(self, before: bytes, record: Record) -> bytes:
        """The mac of a record, 32 bytes, from that of the one before."""
        told = (record.number, record.time, record.kind, record.batch, record.request, record.content)
        return hmac.digest(self.chain, before + ENCODER.encode(told), "sha256")

    def seal(self, name: str, head: Head) -> bytes:
        """The seal of a head under a name, 32 bytes: it says that no later one was there."""
        return hmac.digest(self.seals, ENCODER.encode((name, head.number, head.mac)), "sha256")

    def is_seal(self, name: str, head: Head, seal: bytes) -> bool:
        """Whether a seal is that of a head."""
        return hmac.compare_digest(self.seal(name, head), seal)

    def hash(self, content: bytes | memoryview) -> bytes:
        """A keyed hash of a row's or a note's bytes, 16 bytes: it tells equal ones, and nothing else without the key."""
        return hashlib.blake2b(content, digest_size=HASH_BYTES, key=self.hashes).digest()


class HeadFile:
    """The sealed head in a file beside the journal, written after each transaction.

    If the database is taken back to an earlier state, by cutting its write-ahead log for example, this one is still ahead.
    Two places are written in turn: if the machine stops while one is written, the other is whole.
    """

    SIZE = 256  # bytes of a place

    def __init__(self, journal: Path, key: JournalKey) -> None:
        self.path, self.key = head_path(journal), key
        self.place = 1 - latest_place(journal, key)
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, head: Head) -> None:
        """Replace one of the two heads."""
        text = f"{head} {self.key.seal(FILE, head).hex()}".encode()
        os.pwrite(self.descriptor, text.ljust(self.SIZE), self.place * self.SIZE)
        self.place = 1 - self.place

    def close(self) -> None:
        os.close(self.descriptor)


def head_path(journal: Path) -> Path:
    """Where the sealed head of a journal is."""
    return journal.with_name(f"{journal.name}-head")


def read_head(journal: Path, key: JournalKey) -> Head | None:
    """The latest head in the file beside a journal; None if there is none under this key."""
    return max(filter(None, read_heads(journal, key)), key=lambda head: head.number, default=None)


def latest_place(journal: Path, key: JournalKey) -> int:
    """The place of the latest head in its file, 0 or 1."""
    first, second = (EMPTY if head is None else head for head in read_heads(journal, key))
    return int(second.number > first.number)


def read_heads(journal: Path, key: JournalKey) -> tuple[Head | None, Head | None]:
    """What the two places of a head's file have under this key."""
    try:
        text = read_regular(head_path(journal), 2 * HeadFile.SIZE)
    except OSError:
        return None, None
    return head_in(text[: HeadFile.SIZE], key), head_in(text[HeadFile.SIZE :], key)


def head_in(place: bytes, key: JournalKey) -> Head | None:
    """The sealed head in a place of the file, None if there is none."""
    try:
        told, seal = place.decode().split()
        head = Head.parse(told)
        return head if key.is_seal(FILE, head, bytes.fromhex(seal)) else None
    except (ValueError, JournalError):
        return None
