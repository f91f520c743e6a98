"""Watches a load."""

from __future__ import annotations


class Observer:
    """Remembers the stages, and how often something within one was done."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.advanced = 0

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def advance(self) -> None:
        self.advanced += 1
