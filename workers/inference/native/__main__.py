"""``python -m workers.inference.native``: compile the kernels now, not at the first question."""

from __future__ import annotations

from workers.inference.native.runner import NativeRunner

runner = NativeRunner()
runner.prepare()
runner.close()
