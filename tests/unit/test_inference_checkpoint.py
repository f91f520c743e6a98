"""Model directories are judged before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from shammah.errors import ShammahError
from tests.workers.models import CONFIG, write_checkpoint, write_manifest, write_safetensors
from workers.inference.checkpoint import inspect_checkpoint
from workers.inference.safetensors_header import HeaderError, read_header

SHARD_2 = "model-00002-of-00004.safetensors"


def _configure(directory: Path, **changes: Any) -> None:
    (directory / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def _without(key: str) -> Callable[[Path], None]:
    def defect(directory: Path) -> None:
        kept = {name: value for name, value in CONFIG.items() if name != key}
        (directory / "config.json").write_text(json.dumps(kept))

    return defect


def _truncate(name: str, by: int = 100) -> Callable[[Path], None]:
    def defect(directory: Path) -> None:
        path = directory / name
        path.write_bytes(path.read_bytes()[:-by])

    return defect


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_bytes(content) and None


def _remove(*names: str) -> Callable[[Path], None]:
    def defect(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return defect


def _gguf_only(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model.gguf")


def _other_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").rename(directory / "tokenizer.model")


def _swap_embedding(directory: Path) -> None:
    write_safetensors(directory / "model.safetensors", {"model.embed_tokens.weight": (384, 16)})


def _grown_after_manifest(directory: Path) -> None:
    write_manifest(directory)
    with (directory / "model.safetensors").open("ab") as file:
        file.write(b"\0" * 8)


def _lost_after_manifest(directory: Path) -> None:
    write_manifest(directory)
    (directory / "tokenizer_config.json").unlink()


SINGLE_DEFECTS = {
    "no config": (_remove("config.json"), "model_incomplete", "config.json"),
    "config not JSON": (_write("config.json", b"{"), "model_config_invalid", "not JSON"),
    "config a list": (_write("config.json", b"[]"), "model_config_invalid", "not a JSON object"),
    "config nested": (_write("config.json", b"[" * 99999), "model_config_invalid", "not JSON"),
    "no architecture": (_without("architectures"), "model_config_invalid", "architecture"),
    "an encoder": (
        lambda d: _configure(d, architectures=["BertForMaskedLM"]),
        "model_unsupported",
        "BertForMaskedLM",
    ),
    "quantised": (
        lambda d: _configure(d, quantization_config={"quant_method": "gptq"}),
        "model_unsupported",
        "quantised",
    ),
    "no context": (_without("max_position_embeddings"), "model_config_invalid", "None"),
    "zero layers": (
        lambda d: _configure(d, num_hidden_layers=0),
        "model_config_invalid",
        "gives 0 as num_hidden_layers",
    ),
    "layers a word": (
        lambda d: _configure(d, num_hidden_layers="many"),
        "model_config_invalid",
        "'many'",
    ),
    "uneven heads": (
        lambda d: _configure(d, num_key_value_heads=3),
        "model_config_invalid",
        "4 attention heads, but 3",
    ),
    "other hidden size": (
        lambda d: _configure(d, hidden_size=64),
        "model_config_invalid",
        "384 tokens of 64 numbers, but the weights hold 384 of 32",
    ),
    "other weights": (_swap_embedding, "model_config_invalid", "hold 384 of 16"),
    "no tokenizer": (_remove("tokenizer.json"), "model_incomplete", "tokenizer.json"),
    "another tokenizer": (_other_tokenizer, "model_unsupported", "tokenizer.model"),
    "no weights": (_remove("model.safetensors"), "model_incomplete", "no model.safetensors"),
    "only GGUF": (_gguf_only, "model_unsupported", "model.gguf"),
    "empty weights": (_write("model.safetensors", b""), "model_corrupt", "0 bytes"),
    "truncated weights": (_truncate("model.safetensors"), "model_corrupt", "but its header says"),
    "truncated header": (
        lambda d: (
            (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:50])
            and None
        ),
        "model_corrupt",
        "header alone should have",
    ),
    "weights not safetensors": (
        _write("model.safetensors", b"\x10" + b"\0" * 7 + b"not json, 16 byt"),
        "model_corrupt",
        "not JSON",
    ),
    "grown since fetched": (_grown_after_manifest, "model_corrupt", "bytes instead of"),
    "lost since fetched": (_lost_after_manifest, "model_incomplete", "tokenizer_config.json"),
    "bad manifest": (_write("shammah-manifest.json", b"{}"), "model_corrupt", "lists no files"),
}

SHARD_DEFECTS = {
    "a shard is missing": (_remove(SHARD_2), "model_incomplete", "1 of 4 weight files"),
    "a truncated shard": (_truncate(SHARD_2), "model_corrupt", f"{SHARD_2} is damaged"),
    "another shard's content": (
        lambda d: shutil.copy(d / "model-00003-of-00004.safetensors", d / SHARD_2) and None,
        "model_corrupt",
        f"{SHARD_2} does not hold 'model.layers.0.mlp.weight'",
    ),
    "index not JSON": (
        _write("model.safetensors.index.json", b"\xff"),
        "model_corrupt",
        "not JSON",
    ),
    "index without a map": (
        _write("model.safetensors.index.json", b"{}"),
        "model_corrupt",
        "names no tensors",
    ),
    "index leaves the directory": (
        _write("model.safetensors.index.json", b'{"weight_map": {"a": "../x"}}'),
        "model_corrupt",
        "names no files",
    ),
    "index of numbers": (
        _write("model.safetensors.index.json", b'{"weight_map": {"a": [1]}}'),
        "model_corrupt",
        "names no files",
    ),
}


@pytest.mark.parametrize("shards", [1, 4])
def test_a_whole_model_is_described(tmp_path: Path, shards: int) -> None:
    found = inspect_checkpoint(write_checkpoint(tmp_path, shards))
    assert (found.architecture, found.model_type) == ("Qwen2ForCausalLM", "qwen2")
    assert found.context_length == CONFIG["max_position_embeddings"]
    assert len(found.weights) == shards
    assert found.parameters == 384 * 32 + 3 * 32 * 32
    assert found.weight_bytes == sum(path.stat().st_size for path in found.weights)
    assert found.revision == ""


@pytest.mark.parametrize(("shards", "defects"), [(1, SINGLE_DEFECTS), (4, SHARD_DEFECTS)])
def test_every_defect_is_named(tmp_path: Path, shards: int, defects: dict[str, Any]) -> None:
    whole = write_checkpoint(tmp_path / "whole", shards)
    for number, (what, (defect, code, part)) in enumerate(defects.items()):
        directory = tmp_path / str(number)
        shutil.copytree(whole, directory)
        defect(directory)
        with pytest.raises(ShammahError) as caught:
            inspect_checkpoint(directory)
        assert (what, caught.value.code) == (what, code)
        assert part in caught.value.message, what
        assert caught.value.hint


def test_a_manifest_gives_the_revision(tmp_path: Path) -> None:
    write_manifest(write_checkpoint(tmp_path), "abc")
    assert inspect_checkpoint(tmp_path).revision == "abc"


def test_a_snapshot_of_the_hub_gives_the_revision(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    directory = write_checkpoint(tmp_path / "models--a--b" / "snapshots" / commit)
    assert inspect_checkpoint(directory).revision == commit


def test_older_names_of_dimensions_are_known(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    gpt2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 384}
    gpt2 |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 77}
    (tmp_path / "config.json").write_text(json.dumps(gpt2))
    assert inspect_checkpoint(tmp_path).context_length == 77


@given(st.data())
@example(None)
def test_what_the_library_refuses_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    write_safetensors(path, {"a": (2, 3), "b": (), "c": (4,)})
    content = bytearray(path.read_bytes())
    if data is not None:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            content = content[: data.draw(st.integers(0, len(content)))]
    path.write_bytes(content)
    try:
        with safe_open(path, "numpy"):
            pass
    except SafetensorError:
        with pytest.raises(HeaderError):
            read_header(path)
