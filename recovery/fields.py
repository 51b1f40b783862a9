"""Pure: strict reading of a JSON object, field by field; what nobody asked for is refused.

Every complaint is a ConfigError that names the field by its path, such as `machine.macs`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable

from plumbing.errors import ConfigError

Pairs = list[tuple[str, object]]


def parse_object(data: bytes | str, what: str) -> dict[str, object]:
    """Parse one JSON object; duplicate keys, NaN and Infinity are refused. `what` names the document."""

    def unique(pairs: Pairs) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            if key in found:
                raise ConfigError(f"{what} has the key {key!r} twice; write it once")
            found[key] = value
        return found

    def no_constant(name: str) -> object:
        raise ConfigError(f"{what} holds {name}, which is not JSON; write a number")

    try:
        value = json.loads(data, object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} is not JSON ({error}); have it issued again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{what} is not a JSON object; have it issued again")
    return value


class Fields:
    """One JSON object being read; call `end` when every key was asked for."""

    def __init__(self, value: dict[str, object], where: str) -> None:
        self._value = value
        self._where = where
        self._left = set(value)

    def _path(self, key: str) -> str:
        return f"{self._where}.{key}"

    def _take(self, key: str) -> object:
        if key not in self._value:
            raise ConfigError(f"{self._path(key)} is missing; add it, or issue again with this version of reroot")
        self._left.discard(key)
        return self._value[key]

    def raw(self, key: str) -> object:
        """Return a value as it is."""
        return self._take(key)

    def text(self, key: str, pattern: re.Pattern[str], meaning: str, *, longest: int = 255) -> str:
        """Return a string that `pattern` matches from end to end; `meaning` says what it should be."""
        return self._match(self._take(key), self._path(key), pattern, meaning, longest)

    def text_or_none(self, key: str, pattern: re.Pattern[str], meaning: str, *, longest: int = 255) -> str | None:
        """Like `text`, or None for null."""
        value = self._take(key)
        return None if value is None else self._match(value, self._path(key), pattern, meaning, longest)

    def texts(
        self, key: str, pattern: re.Pattern[str], meaning: str, *, least: int = 0, most: int = 64,
    ) -> tuple[str, ...]:
        """Return a list of `least` to `most` different strings, each matching `pattern`."""
        values = self._list(key, least, most)
        found = tuple(self._match(v, f"{self._path(key)}[{n}]", pattern, meaning, 255) for n, v in enumerate(values))
        if len(set(found)) != len(found):
            raise ConfigError(f"{self._path(key)} names something twice; write it once")
        return found

    def integer(self, key: str, low: int, high: int) -> int:
        """Return an integer between `low` and `high`, both included."""
        value = self._take(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"{self._path(key)} must be a whole number from {low} to {high}, not {value!r:.60}")
        return value

    def choice(self, key: str, options: Collection[str]) -> str:
        """Return one of `options`."""
        value = self._take(key)
        if not isinstance(value, str) or value not in options:
            raise ConfigError(f"{self._path(key)} must be one of {', '.join(sorted(options))}, not {value!r:.60}")
        return value

    def child(self, key: str) -> Fields:
        """Return an object to be read in turn."""
        return self._object(self._take(key), self._path(key))

    def child_or_none(self, key: str) -> Fields | None:
        """Like `child`, or None for null."""
        value = self._take(key)
        return None if value is None else self._object(value, self._path(key))

    def children(self, key: str, *, least: int = 0, most: int = 64) -> Iterable[Fields]:
        """Return a list of objects to be read in turn."""
        values = self._list(key, least, most)
        return tuple(self._object(v, f"{self._path(key)}[{n}]") for n, v in enumerate(values))

    def mapping(self, key: str) -> dict[str, object]:
        """Return an object whose inside belongs to somebody else."""
        value = self._take(key)
        if not isinstance(value, dict):
            raise ConfigError(f"{self._path(key)} must be an object, not {value!r:.60}")
        return value

    def end(self) -> None:
        """Refuse the keys that nobody asked for."""
        if self._left:
            names = ", ".join(sorted(self._left))
            raise ConfigError(f"{self._where} has unknown keys: {names:.200}; remove them or update reroot here")

    def _list(self, key: str, least: int, most: int) -> list[object]:
        value = self._take(key)
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise ConfigError(f"{self._path(key)} must be a list of {least} to {most} entries")
        return value

    @staticmethod
    def _object(value: object, path: str) -> Fields:
        if not isinstance(value, dict):
            raise ConfigError(f"{path} must be an object, not {value!r:.60}")
        return Fields(value, path)

    @staticmethod
    def _match(value: object, path: str, pattern: re.Pattern[str], meaning: str, longest: int) -> str:
        if not isinstance(value, str) or len(value) > longest or not pattern.fullmatch(value):
            raise ConfigError(f"{path} must be {meaning}, not {value!r:.80}")
        return value
