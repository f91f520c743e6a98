"""What may be spent in a day. The ledger knows what was."""

from __future__ import annotations

from shammah.errors import ShammahError
from shammah.privacy.ledger import Ledger
from shammah.settings.model import CloudSettings
from workers.cloud.models import model_of


class Budget:
    """``daily_budget`` of ``settings``, for all that write to ``ledger``."""

    def __init__(self, settings: CloudSettings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger

    @property
    def limited(self) -> bool:
        return self._settings.daily_budget > 0

    def check(self) -> None:
        """Refuse when the day's money is spent, or cannot be counted.

        Raises:
            ShammahError: ``cloud_budget_spent``, ``cloud_price_unknown``, ``egress_unreadable``.
        """
        if not self.limited:
            return
        if not model_of(self._settings).priced:
            raise ShammahError(
                "cloud_price_unknown",
                f"A daily budget is set, but the price of {self._settings.model!r:.60} is unknown.",
                "Set input_price and output_price under [cloud] in config.toml.",
            )
        spent, limit = self._ledger.spent_today(), self._settings.daily_budget
        if spent >= limit:
            raise ShammahError(
                "cloud_budget_spent",
                f"Claude has cost ${spent:,.2f} today (UTC); the budget is ${limit:,.2f} a day.",
                "It resumes tomorrow. To allow more, raise daily_budget under [cloud] in "
                "config.toml; `shammah egress` shows what was sent.",
            )
