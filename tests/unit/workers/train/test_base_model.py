"""Which base model a training finds on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from shammah.errors import ShammahError
from shammah.settings.model import Settings
from tests.fakes.gguf_files import gguf_file
from workers.train.base_model import locate


def test_a_gguf_file_cannot_be_trained(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_file())
    for named in (path, tmp_path):
        with pytest.raises(ShammahError, match="is a GGUF file") as caught:
            locate(str(named), Settings(tmp_path), {})
        assert caught.value.code == "model_unsupported"
        assert "original repository" in caught.value.hint
