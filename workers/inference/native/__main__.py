"""``python -m workers.inference.native``: compile the kernels now, not at the first question."""

from __future__ import annotations

from workers.inference.native import processor
from workers.inference.native.runner import NativeRunner

if why := processor.obstacle():
    print(f"The native engine is not prepared: it {why}.")
else:
    runner = NativeRunner()
    runner.prepare()
    runner.close()
