"""``python -m workers.inference.engines.native``: compile the kernels now, not at a question."""

from __future__ import annotations

from workers.inference.engines.native import processor
from workers.inference.engines.native.runner import NativeRunner

if why := processor.obstacle():
    print(f"Skipped the native engine: it {why}.")
else:
    runner = NativeRunner()
    runner.prepare()
    runner.close()
