"""Learning by itself, for as long as a prompt is open."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shammah.chat.session import Session

if TYPE_CHECKING:
    from shammah.learning.auto import AutoTraining


class Learning:
    """Begins trainings in the background, unless that is switched off."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._asked_s = time.monotonic()
        self._training: AutoTraining | None = None

    def start(self) -> None:
        settings = self._session.settings
        if not settings.train.auto:
            return
        from shammah.learning.auto import AutoTraining  # most people have it switched off

        self._training = AutoTraining(
            settings,
            lambda: self._session.settings.model,
            lambda: time.monotonic() - self._asked_s,
        )
        self._training.start()

    def note_question(self) -> None:
        """One was asked just now."""
        self._asked_s = time.monotonic()

    def close(self) -> None:
        if self._training is not None:
            self._training.close()
