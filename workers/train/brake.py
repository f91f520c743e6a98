"""Where a training stands still: for a question, on battery, or for good.

The model's layers ask the brake before each of them is computed, forward and backward, so that
a question need not wait for the end of a step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LOOK_S = 0.5
"""How often one that stands looks whether it was cancelled, and says that it lives."""


class CancelledError(Exception):
    """The training was ended by who asked for it, or the worker ends."""


class Brake:
    """Any thread may `hold`, `release` and `cancel`; the training calls `check`.

    Args:
        on_wait: called when it begins to stand still, with why, again and again while it does
            (``None``), and with an empty text when it goes on.
        clock: seconds.
    """

    def __init__(
        self,
        on_wait: Callable[[str | None], None] = lambda why: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_wait = on_wait
        self._clock = clock
        self._changed = threading.Condition()
        self._reasons: list[str] = []
        self._cancelled = False
        self._free = True
        self.stood_s = 0.0
        """Seconds that were waited in all."""

    def hold(self, why: str) -> None:
        """Stand still as long as ``why`` has not been released."""
        with self._changed:
            if why not in self._reasons:
                self._reasons.append(why)
            self._free = False

    def release(self, why: str) -> None:
        with self._changed:
            self._reasons = [one for one in self._reasons if one != why]
            self._free = not self._reasons and not self._cancelled
            self._changed.notify_all()

    def cancel(self) -> None:
        """Have the next `check` raise."""
        with self._changed:
            self._cancelled = True
            self._free = False
            self._changed.notify_all()

    def check(self) -> None:
        """Return at once, or when nothing holds any more.

        Raises:
            CancelledError: see `cancel`.
        """
        if self._free:  # read without the lock: this is asked hundreds of times a step
            return
        began = self._clock()
        told = False
        with self._changed:
            while not self._cancelled and self._reasons:
                self.on_wait(None if told else self._reasons[0])
                told = True
                self._changed.wait(LOOK_S)
            cancelled = self._cancelled
        self.stood_s += self._clock() - began
        if told:
            self.on_wait("")
        if cancelled:
            raise CancelledError


@contextmanager
def braked(model: Any, brake: Brake) -> Iterator[None]:
    """Have every layer of ``model`` ask the brake before it computes, in both directions."""

    def before(module: Any, arguments: Any) -> None:
        brake.check()

    def after(module: Any, arguments: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: brake.check())

    hooks = []
    for layer in find_layers(model):
        hooks += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def find_layers(model: Any) -> list[Any]:
    """The decoder's layers: the longest list of modules that there is."""
    import torch

    lists: list[Any] = [one for one in model.modules() if isinstance(one, torch.nn.ModuleList)]
    return max((list(one) for one in lists), key=len, default=[])
