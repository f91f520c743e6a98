"""What a worker failed for can be mended, and the next question finds it mended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.fakes.sandbox import Sandbox

SHAMMAH = str(Path(sys.prefix, "bin", "shammah"))


def ask(directory: Path) -> str:
    """What is said of a question to the model in ``directory``."""
    command = [SHAMMAH, "ask", "--model", str(directory), "hello"]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_a_model_directory_is_looked_at_again_by_the_next_question(sandbox: Sandbox) -> None:
    directory = sandbox.home / "model"
    directory.mkdir()
    assert "has no config.json" in ask(directory)
    (directory / "config.json").write_text("{")
    assert "has no config.json" not in ask(directory)
