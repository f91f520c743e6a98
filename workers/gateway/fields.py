"""The fields of a request's document, read with their types. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from workers.gateway.refusals import RefusedError, invalid


class Fields:
    """A JSON object of a request; ``where`` names it in errors. `null` is as good as nothing.

    Raises:
        RefusedError: from every method, naming the field that is not what it must be.
    """

    def __init__(self, document: object, where: str = "") -> None:
        if not isinstance(document, dict):
            raise invalid(f"{where or 'The body'} must be a JSON object.", where)
        self._where = where
        self._values: Mapping[str, Any] = document

    def name(self, key: str) -> str:
        """What the field is called in an error."""
        return f"{self._where}.{key}" if self._where else key

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def text(self, key: str, default: str | None = None) -> str:
        """A text; without a default it must be there."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return bool(value)

    def number(self, key: str, least: float, most: float = math.inf) -> float | None:
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        if not (math.isfinite(value) and least <= value <= most):
            bound = f" and at most {most:g}" if math.isfinite(most) else ""
            raise self.wrong(key, f"at least {least:g}{bound}")
        return float(value)

    def whole(self, key: str, least: int = 0) -> int | None:
        value = self.get(key)
        if value is not None and (type(value) is not int or value < least):
            raise self.wrong(key, f"a whole number, at least {least}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A text or a list of texts."""
        value = self.get(key)
        if value is None:
            return ()
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise self.wrong(key, "a text or a list of texts")
        return tuple(found)

    def objects(self, key: str) -> Iterator[Fields]:
        """The objects of a list."""
        value = self.get(key)
        if value is not None and not isinstance(value, list):
            raise self.wrong(key, "a list")
        for number, one in enumerate(value or ()):
            yield Fields(one, f"{self.name(key)}[{number}]")

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Refuse the fields that are asked for and would change the meaning."""
        for key, why in reasons.items():
            value = self.get(key)
            if value not in (None, False, 0, [], {}, ""):
                raise invalid(f"{self.name(key)} is not supported: {why}.", self.name(key))

    def others(self, known: Collection[str]) -> tuple[str, ...]:
        """The fields that are there and not ``known``."""
        return tuple(sorted(self._values.keys() - set(known)))

    def wrong(self, key: str, expected: str) -> RefusedError:
        name = self.name(key)
        return invalid(f"{name} must be {expected}.", name)
