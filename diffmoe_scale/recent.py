"""A small memory of what was used last: open files, shard indexes, permutations."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class RecentlyUsed(Generic[Key, Value]):
    """At most `limit` values; the one unused for longest leaves first. Travels to another process empty."""

    def __init__(self, limit: int, *, discard: Callable[[Value], None] | None = None) -> None:
        self.limit = limit
        self.discard = discard
        self.values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[Key], Value]) -> Value:
        """The value of a key, made by `make(key)` unless remembered."""
        if key in self.values:
            self.values.move_to_end(key)
            return self.values[key]
        value = self.values[key] = make(key)
        if len(self.values) > self.limit:
            self._drop_oldest()
        return value

    def clear(self) -> None:
        while self.values:
            self._drop_oldest()

    def discard_if(self, is_stale: Callable[[Value], bool]) -> None:
        for key in [key for key, value in self.values.items() if is_stale(value)]:
            value = self.values.pop(key)
            if self.discard is not None:
                self.discard(value)

    def _drop_oldest(self) -> None:
        _, value = self.values.popitem(last=False)
        if self.discard is not None:
            self.discard(value)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"values": OrderedDict()}

    def __del__(self) -> None:
        self.clear()
