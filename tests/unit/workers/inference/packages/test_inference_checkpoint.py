"""Model directories are judged before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from shammah.errors import ShammahError
from tests.real.models import CONFIG, write_checkpoint, write_manifest, write_safetensors
from workers.inference.packages.checkpoint import Checkpoint, inspect_checkpoint
from workers.inference.packages.safetensors_header import MAX_HEADER_BYTES, HeaderError, read_header

SHARD_2 = "model-00002-of-00004.safetensors"


def _configure(directory: Path, **changes: Any) -> None:
    (directory / "config.json").write_text(json.dumps({**CONFIG, **changes}))


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


def _pipe(name: str) -> Callable[[Path], None]:
    def defect(directory: Path) -> None:
        (directory / name).unlink(missing_ok=True)
        os.mkfifo(directory / name)

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
    "config not JSON": (_write("config.json", b"{"), "model_config_invalid", "not a JSON object"),
    "config a list": (_write("config.json", b"[]"), "model_config_invalid", "not a JSON object"),
    "config nested": (
        _write("config.json", b"[" * 99999),
        "model_config_invalid",
        "not a JSON object",
    ),
    "no architecture": (
        lambda d: _configure(d, architectures=None, model_type="unheard-of"),
        "model_config_invalid",
        "names no architecture, and there is no text generation model of its model type "
        "('unheard-of')",
    ),
    "no architecture and no type": (
        lambda d: _configure(d, architectures=[], model_type=None),
        "model_config_invalid",
        "(None)",
    ),
    "an encoder": (
        lambda d: _configure(d, architectures=["BertForMaskedLM"]),
        "model_unsupported",
        "BertForMaskedLM",
    ),
    "quantized": (
        lambda d: _configure(d, quantization_config={"quant_method": "bitsandbytes"}),
        "model_unsupported",
        "quantised by 'bitsandbytes'; only AWQ",
    ),
    "no context": (
        lambda d: _configure(d, max_position_embeddings=None, model_type="unheard-of"),
        "model_config_invalid",
        "does not say max_position_embeddings",
    ),
    "a huge context": (
        lambda d: _configure(d, max_position_embeddings=10**400),
        "model_config_invalid",
        "max_position_embeddings",
    ),
    "a billion layers": (
        lambda d: _configure(d, num_hidden_layers=10**9),
        "model_config_invalid",
        "says 1000000000 layers, but the weights hold 4 tensors",
    ),
    "a width below zero": (
        lambda d: _configure(d, intermediate_size=-1),
        "model_config_invalid",
        "gives -1 as intermediate_size",
    ),
    "an endless config": (
        lambda d: os.truncate(d / "config.json", 2**40),
        "model_corrupt",
        "config.json has 1,099,511,627,776 bytes",
    ),
    "an adapter alone": (
        lambda d: (_remove("model.safetensors")(d), _write("adapter_config.json", b"{}")(d))[1],
        "model_unsupported",
        "holds an adapter (adapter_config.json), not a model",
    ),
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
    "config a pipe": (_pipe("config.json"), "model_corrupt", "config.json is a pipe"),
    "tokenizer a pipe": (_pipe("tokenizer.json"), "model_corrupt", "tokenizer.json is a pipe"),
    "template a pipe": (_pipe("chat_template.jinja"), "model_corrupt", "chat_template.jinja is"),
    "weights a pipe": (_pipe("model.safetensors"), "model_corrupt", "model.safetensors is a pipe"),
    "numbers from a device": (
        lambda d: (d / "generation_config.json").symlink_to("/dev/zero"),
        "model_corrupt",
        "generation_config.json is a pipe or a device",
    ),
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


@pytest.mark.parametrize("nothing", [None, ..., []])
def test_the_class_of_the_model_type_says_what_the_configuration_leaves_out(
    tmp_path: Path, nothing: object
) -> None:
    write_checkpoint(tmp_path)
    changes = {"architectures": nothing, "max_position_embeddings": nothing or None}
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = inspect_checkpoint(tmp_path)
    assert (found.architecture, found.context_length) == ("Qwen2ForCausalLM", 32_768)


class TestTheOutputLayer:
    """The embedding, or one of its own: the weights decide."""

    EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

    def write(self, directory: Path, at: int, byte: int, **config: Any) -> Checkpoint:
        """With both, which are zeros but for one byte of the last."""
        write_checkpoint(directory)
        _configure(directory, **config)
        path = directory / "model.safetensors"
        layers = {f"model.layers.{n}.mlp.weight": (32, 32) for n in range(3)}
        write_safetensors(path, layers | {self.EMBEDDING: (384, 32), self.HEAD: (384, 32)})
        with path.open("r+b") as file:
            file.seek(at, os.SEEK_END)
            file.write(bytes([byte]))
        return inspect_checkpoint(directory)

    def test_is_the_embedding_where_the_weights_hold_no_other(self, tmp_path: Path) -> None:
        found = inspect_checkpoint(write_checkpoint(tmp_path))
        assert (found.tied, found.notices) == (True, ())

    def test_is_the_embedding_where_both_are_the_same(self, tmp_path: Path) -> None:
        found = self.write(tmp_path, -1, 0)
        assert (found.tied, found.notices) == (True, ())

    @pytest.mark.parametrize("at", [-1, -384 * 32 * 4])
    def test_is_the_one_in_the_weights_where_they_differ(self, tmp_path: Path, at: int) -> None:
        found = self.write(tmp_path, at, 1)
        assert not found.tied
        [notice] = found.notices
        assert "an output layer of their own (lm_head.weight), which is used." in notice

    def test_is_not_looked_for_where_the_configuration_says_so(self, tmp_path: Path) -> None:
        found = self.write(tmp_path, -1, 1, tie_word_embeddings=False)
        assert (found.tied, found.notices) == (False, ())

    def test_is_compared_again_when_the_file_has_changed(self, tmp_path: Path) -> None:
        assert self.write(tmp_path, -1, 0).tied
        assert not self.write(tmp_path, -1, 1).tied


def test_an_adapter_beside_the_weights_is_named(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "my model")
    (directory / "adapter_config.json").write_text("{}")
    [notice] = inspect_checkpoint(directory).notices
    assert "is not used" in notice
    assert f"`shammah adapters import '{directory}'`" in notice


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"shape": [10**400]}, "describes tensor 'a' wrongly"),
        ({"shape": [2**63]}, "describes tensor 'a' wrongly"),
        ({"shape": [2**62, 2**62]}, "needs "),
        ({"shape": [1] * 65}, "describes tensor 'a' wrongly"),
        ({"shape": [2**62] * 2_000_000}, "describes tensor 'a' wrongly"),
        ({"data_offsets": [0, 10**400]}, "describes tensor 'a' wrongly"),
        ({"dtype": ["F32"]}, "describes tensor 'a' wrongly"),
        ({"shape": {"2": 3}}, "describes tensor 'a' wrongly"),
    ],
)
def test_a_header_with_absurd_numbers_is_said_to_be_damaged(
    entry: dict[str, Any], says: str, tmp_path: Path
) -> None:
    described = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}
    text = json.dumps({"a": described}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(HeaderError) as caught:
        read_header(path)
    assert says in str(caught.value) or "its header has" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_large_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1))
    os.truncate(path, 2**40)  # a hole
    with pytest.raises(HeaderError, match="at most 16,777,216 are allowed"):
        read_header(path)


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
