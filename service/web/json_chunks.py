"""Large JSON bodies in chunks that are decoded in milliseconds each, so that nothing large is allocated in vain.

A decoder of JSON runs to its end once it has begun, keeps the interpreter meanwhile, and builds whatever the body says:
16 MB of `[],[],...` become gigabytes. Here a body is first divided at the elements of its list, which takes no memory. The
budgets of elements, bytes and depth are checked on the way, and the deadline between chunks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from service.errors import InputError, MalformedError, TooLargeError
from service.system.cancellation import CheckCancelled, never_cancelled

CHUNK = 65_536  # bytes; smaller bodies are one chunk
MAX_ELEMENT = 2**20  # bytes of a row
MAX_DEPTH = 8  # of lists and objects in a row
MAX_SIGNS = 100_000  # texts, lists and objects in a row
SIGNS_PER_CHECK = 4_096
MAX_KEY = 1_000  # bytes
SIGNS = re.compile(rb'["\[\]{}]')
SPACE = re.compile(rb"[ \t\r\n]*")
KEY = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)


@dataclass
class Cursor:
    """A place in a JSON text, which moves on over what was read.

    `check` is called every few milliseconds of work, and raises to end it. All methods raise MalformedError where the text
    is not JSON, and TooLargeError where it is larger or deeper than allowed; they do not find everything that is wrong.
    """

    text: bytes | bytearray
    check: CheckCancelled = never_cancelled
    at: int = 0

    def sign(self) -> bytes:
        """The next sign that is no white space."""
        while True:
            found = SPACE.match(self.text, self.at, self.at + CHUNK)
            assert found is not None
            is_done, self.at = found.end() < self.at + CHUNK, found.end()
            if is_done:
                return bytes(self.text[self.at : self.at + 1])

    def step(self, signs: bytes) -> bytes:
        """Move over the next sign, which must be one of these."""
        sign = self.sign()
        if not sign or sign not in signs:
            raise self.not_json()
        self.at += 1
        return sign

    def key(self) -> str | None:
        """Move over the next key of an object and its colon, or over the object's end; None at its end."""
        if self.sign() == b"}":
            self.at += 1
            return None
        found = KEY.match(self.text, self.at, self.at + MAX_KEY)
        if found is None:
            raise self.not_json()
        self.at = found.end()
        self.step(b":")
        return found[1].decode("utf-8", "replace")

    def value(self, most: int, most_signs: int = MAX_SIGNS) -> None:
        """Move over a value of at most so many bytes, with at most so many strings, lists and objects."""
        sign, stop = self.sign(), self.at + most
        if sign == b'"':
            self.string(stop)
        elif sign and sign in b"[{":
            self.container(stop, most_signs)
        else:
            while self.text[self.at : self.at + 1] not in (b"", b",", b"]", b"}") and self.at < stop:
                self.at += 1

    def container(self, stop: int, most_signs: int) -> None:
        """Move over a list or an object that ends before `stop`."""
        depth, start = 0, self.at
        for number in count():
            if number > 2 * most_signs:  # of a list, its beginning and its end
                raise TooLargeError(f"the body has more than {most_signs:,} texts, lists and objects in one place")
            if number % SIGNS_PER_CHECK == 0:
                self.check()
            found = SIGNS.search(self.text, self.at, min(self.at + CHUNK, stop))
            if found is None:
                self.at += CHUNK
                if self.at >= min(stop, len(self.text)):
                    raise self.unended(start, stop)
                continue
            self.at, sign = found.end(), found.group()
            if sign == b'"':
                self.at -= 1
                self.string(stop)
            elif sign in b"[{":
                depth += 1
                if depth > MAX_DEPTH:
                    raise TooLargeError(f"the body has lists or objects that are more than {MAX_DEPTH} deep")
            else:
                depth -= 1
                if not depth:
                    return

    def string(self, stop: int) -> None:
        """Move over a string that ends before `stop`."""
        start, at = self.at, self.at + 1
        while True:
            at = self.text.find(b'"', at, stop) + 1
            if not at:
                raise self.unended(start, stop)
            backslashes = at - 2
            while self.text[backslashes : backslashes + 1] == b"\\":
                backslashes -= 1
            if (at - 2 - backslashes) % 2 == 0:  # all of them stand for themselves
                self.at = at
                return

    def numbers(self) -> int:
        """Move over as many numbers of a list as lie within CHUNK bytes; return how many."""
        start = self.at
        found = SIGNS.search(self.text, start, start + CHUNK)
        stop = min(start + CHUNK, len(self.text)) if found is None else found.start()
        if found is None or found.group() != b"]":
            stop = self.text.rfind(b",", start, stop)  # the last number may go on beyond the window
        if stop <= start:
            raise self.not_json()
        self.at = stop
        return self.text.count(b",", start, stop) + 1

    def chunks(self, most: int, max_element: int = MAX_ELEMENT) -> Iterator[tuple[int, int]]:
        """Move over a list of at most `most` elements; yield the starts and ends of its chunks, of whole elements."""
        self.step(b"[")
        elements, sign = 0, self.sign()
        first = self.at
        if sign == b"]":
            self.at += 1
            return
        while True:
            if self.sign() in (b"[", b"{", b'"'):
                self.value(max_element)
                elements += 1
            else:
                elements += self.numbers()
            if elements > most:
                raise TooLargeError(f"the body has more than {most:,} rows or numbers, which is the limit")
            stop = self.at
            sign = self.step(b",]")
            if sign == b"]" or self.at - first >= CHUNK:
                self.check()
                yield first, stop
                first = self.at
            if sign == b"]":
                return

    def end(self) -> None:
        """Raise unless never_cancelled follows."""
        if self.sign():
            raise self.not_json()

    def not_json(self) -> MalformedError:
        return MalformedError(f"the body is not JSON at byte {self.at}: send an object in JSON")

    def unended(self, start: int, stop: int) -> InputError:
        """The error for what has no end within the text, or within its budget."""
        if stop >= len(self.text):
            return MalformedError("the body is not JSON: something in it has no end; send the whole of it")
        return TooLargeError(f"the row at byte {start:,} has more than {stop - start:,} bytes: send smaller ones")


def field_chunks(
    body: bytes | bytearray,
    field: str,
    most: int,
    check: CheckCancelled = never_cancelled,
    max_element: int = MAX_ELEMENT,
) -> Iterator[tuple[bytes | bytearray, int]]:
    """A body `{field: [...]}` as smaller ones of the same form, and by how many bytes each is displaced.

    Raises:
        InputError: it has another form.
    """
    if len(body) <= CHUNK:
        yield body, 0
        return
    cursor = Cursor(body, check)
    if (sign := cursor.sign()) != b"{":
        if sign in (b"[", b'"') or sign.isalnum():
            raise InputError(f'expected an object with the field "{field}"')
        raise cursor.not_json()
    cursor.step(b"{")
    if cursor.key() != field or cursor.sign() != b"[":
        raise InputError(f'expected an object whose only field is "{field}", a list')
    prefix = b'{"' + field.encode() + b'":['
    for start, stop in cursor.chunks(most, max_element):
        yield prefix + body[start:stop] + b"]}", start - len(prefix)
    if cursor.step(b",}") == b",":
        raise InputError(f'expected no fields besides "{field}"')
    cursor.end()
