"""Ends an answer at a text that the request named. Pure."""

from __future__ import annotations


class StopStrings:
    """For one answer. Text that may be the beginning of a stop string is held back until it
    is known whether it is."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found = ""
        """The one that ended the answer; empty: none has."""

    def add(self, text: str) -> str:
        """What may be shown now that ``text`` has come; nothing after a stop string."""
        if self.found or not self._stops:
            return "" if self.found else text
        text = self._held + text
        found = min(filter(text.count, self._stops), key=text.find, default="")
        if found:
            self.found, self._held = found, ""
            return text[: text.find(found)]
        kept = max(self._begun(text, stop) for stop in self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back for nothing: the answer has ended."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _begun(text: str, stop: str) -> int:
        """How much of ``stop`` the end of ``text`` may be."""
        longest = min(len(text), len(stop) - 1)
        return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
