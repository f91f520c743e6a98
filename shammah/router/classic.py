"""The classic policy: the original's threshold router, to the number (SEMANTICS 1.7). Pure.

It forwards the first ten questions, and then each whose category has not enough local
successes. From an empty state that is every question, for ever: local attempts are counted only
where the decision was local. What leads out of it is the router's exploration, or ``--local``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shammah.bus.record import record
from shammah.router.route import Category

WARM_UP = 10
ADAPT_FROM = 50
LOWER, RAISE = 0.995, 1.005
LEAST, MOST = 0.60, 0.95
SLACK = 0.10
GOOD_ENOUGH = 0.70


@record
class CategoryCount:
    local_attempts: int = 0
    successes: int = 0
    failures: int = 0

    @property
    def success_rate(self) -> float:
        return self.successes / self.local_attempts if self.local_attempts else 0.0


@dataclass(frozen=True, slots=True)
class ClassicState:
    """The seven numbers that the original kept in ``threshold_router.json``."""

    total_queries: int = 0
    total_local_attempts: int = 0
    total_successes: int = 0
    confidence_threshold: float = 0.95
    min_samples: int = 3
    target_forward_rate: float = 0.05
    categories: Mapping[Category, CategoryCount] = field(default_factory=dict)

    def should_try_local(self, category: Category) -> bool:
        if self.total_queries < WARM_UP:
            return False
        count = self.categories.get(category, CategoryCount())
        if count.local_attempts < self.min_samples:
            return False
        return count.success_rate >= self.confidence_threshold

    def learn_local(self, category: Category, ok: bool) -> ClassicState:
        """After an answer of the local model."""
        old = self.categories.get(category, CategoryCount())
        tried, good, bad = old.local_attempts + 1, old.successes + ok, old.failures + (not ok)
        count = CategoryCount(tried, good, bad)
        return replace(
            self,
            total_queries=self.total_queries + 1,
            total_local_attempts=self.total_local_attempts + 1,
            total_successes=self.total_successes + ok,
            categories={**self.categories, category: count},
        )._adapted()

    def learn_forwarded(self) -> ClassicState:
        """After an answer of the cloud."""
        return replace(self, total_queries=self.total_queries + 1)._adapted()

    def _adapted(self) -> ClassicState:
        if self.total_queries < ADAPT_FROM:
            return self
        threshold = self.confidence_threshold
        if 1 - self.total_local_attempts / self.total_queries > self.target_forward_rate + SLACK:
            threshold *= LOWER
        elif self.total_successes / max(self.total_local_attempts, 1) < GOOD_ENOUGH:
            threshold *= RAISE
        samples = self.min_samples
        if self.total_queries > 100:
            samples = min(samples, 1 if self.total_queries > 500 else 2)
        return replace(
            self, confidence_threshold=min(MOST, max(LEAST, threshold)), min_samples=samples
        )
