"""What may be spent in a day. The ledger knows what was."""

from __future__ import annotations

from collections.abc import Callable

from shammah.errors import ShammahError
from shammah.privacy.ledger import Ledger
from shammah.settings.model import Settings
from workers.cloud.models import Model, model_of


class Budget:
    """``cloud.daily_budget`` of ``settings``, for all that write to ``ledger``. ``price``: of the
    model that is asked; that of Claude's unless it is given."""

    def __init__(
        self, settings: Settings, ledger: Ledger, price: Callable[[], Model] | None = None
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._price = price or (lambda: model_of(settings.cloud))

    @property
    def limited(self) -> bool:
        return self._settings.cloud.daily_budget > 0

    def check(self) -> None:
        """Refuse when the day's money is spent, or cannot be counted.

        Raises:
            ShammahError: ``cloud_budget_spent``, ``cloud_price_unknown``, ``egress_unreadable``.
        """
        if not self.limited:
            return
        settings = self._settings
        if not self._price().priced:
            where = (
                "[cloud]" if settings.provider is None else f"[servers.{settings.cloud.provider}]"
            )
            raise ShammahError(
                "cloud_price_unknown",
                f"A daily budget is set, but the price of {settings.cloud_model!r:.60} is unknown.",
                f"Set input_price and output_price under {where} in config.toml.",
            )
        spent, limit = self._ledger.spent_today(), settings.cloud.daily_budget
        if spent >= limit:
            raise ShammahError(
                "cloud_budget_spent",
                f"{settings.cloud_name} has cost ${spent:,.2f} today (UTC); the budget is "
                f"${limit:,.2f} a day.",
                "It resumes tomorrow. To allow more, raise daily_budget under [cloud] in "
                "config.toml; `shammah egress` shows what was sent.",
            )
