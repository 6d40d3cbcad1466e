"""Room that callers share: bytes in memory, places in the queue."""

from __future__ import annotations

import threading
from collections import Counter


class SharedRoom:
    """A bounded amount of something that callers hold for a while; safe to share between threads.

    One caller alone may fill the room, and what nobody shares it with may exceed it. When it is full, another caller still
    gets its fair share, from `spare`: what the room has for each of its callers.

    Args:
        limit: most that all hold together.
        spare: how much more callers may hold that hold less than their share.
    """

    def __init__(self, limit: int, spare: int) -> None:
        self.limit, self.spare = limit, spare
        self.held: Counter[str] = Counter()
        self.total = 0
        self.lock = threading.Lock()

    def has_room(self, caller: str, amount: int, own: int = 0) -> bool:
        """Whether a caller may hold so much more; `own` is what it holds already for the same purpose."""
        total = self.total + amount
        if total <= self.limit or self.total <= own:
            return True
        callers = len(self.held) + (caller not in self.held)
        return total <= self.limit + self.spare and self.held.get(caller, 0) + amount <= self.limit / callers

    def take(self, caller: str, amount: int, own: int = 0) -> bool:
        """Hold so much more, if there is room; whether there was."""
        with self.lock:
            if not self.has_room(caller, amount, own):
                return False
            self.add(caller, amount)
            return True

    def give_back(self, caller: str, amount: int) -> None:
        with self.lock:
            self.add(caller, -amount)

    def add(self, caller: str, amount: int) -> None:
        """Hold so much more or, if negative, less, without asking."""
        self.total += amount
        self.held[caller] += amount
        if self.held[caller] <= 0:
            del self.held[caller]
