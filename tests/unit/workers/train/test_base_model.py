"""Which base model a training finds on the disk, and which it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shammah.errors import ShammahError
from shammah.models.catalogue import LocatedModel
from shammah.settings.model import Settings
from tests.fakes.gguf_files import gguf_file
from tests.real.models import write_checkpoint
from workers.train.base_model import Arithmetic, load_base, locate


def test_a_gguf_file_cannot_be_trained(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_file())
    for named in (path, tmp_path):
        with pytest.raises(ShammahError, match="is a GGUF file") as caught:
            locate(str(named), Settings(tmp_path), {})
        assert caught.value.code == "model_unsupported"
        assert "original repository" in caught.value.hint


def test_quantised_weights_cannot_be_trained(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path) / "config.json"
    told = {"quantization_config": {"quant_method": "awq", "bits": 4}}
    path.write_text(json.dumps(json.loads(path.read_text()) | told))
    with pytest.raises(ShammahError, match="The weights of tiny are quantised") as caught:
        load_base(LocatedModel("tiny", tmp_path, "tiny"), Arithmetic("cpu", "float32"))
    assert caught.value.code == "model_unsupported"
    assert "original" in caught.value.hint
