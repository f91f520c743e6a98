"""Which files of a repository are fetched, and which are refused."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.errors import ShammahError
from workers.listing import RemoteFile, RepositoryListing, check_file, needed

SHA1 = "a" * 40
SHA256 = "b" * 64


def listing(*paths: str) -> RepositoryListing:
    files = tuple(RemoteFile(path, 10, SHA256, SHA1) for path in paths)
    return RepositoryListing("acme/tiny", "c" * 40, "mit", files)


def chosen(*paths: str) -> set[str]:
    return {file.path for file in needed(listing(*paths)).files}


def test_a_qwen_repository_is_taken_whole() -> None:
    paths = {
        *(".gitattributes", "LICENSE", "README.md", "config.json", "generation_config.json"),
        *("merges.txt", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        "vocab.json",
    }
    assert chosen(*paths) == paths


def test_shards_and_templates_are_taken_and_other_formats_are_not() -> None:
    wanted = {
        *("config.json", "model.safetensors.index.json", "tokenizer.model", "chat_template.jinja"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        "additional_chat_templates/tools.jinja",
    }
    unwanted = {
        *("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "model.onnx"),
        *("flax_model.msgpack", "q4.gguf", "consolidated.safetensors", "modeling_tiny.py"),
        *("onnx/model.onnx", "original/tokenizer.model", "onnx/config.json"),
    }
    assert chosen(*wanted, *unwanted) == wanted


def test_one_set_of_weights_is_enough() -> None:
    assert "model-00001-of-00001.safetensors" not in chosen(
        "config.json", "model.safetensors", "model-00001-of-00001.safetensors"
    )
    assert "weights.safetensors" in chosen("config.json", "weights.safetensors")


def test_of_a_gguf_file_its_parts_and_nothing_else() -> None:
    parts = ("q8/a-00001-of-00002.gguf", "q8/a-00002-of-00002.gguf")
    everything = listing("README.md", "config.json", "b.gguf", *parts)
    found = needed(everything, parts[0])
    assert {file.path for file in found.files} == {*parts}
    assert found.model_id == f"acme/tiny:{parts[0]}"
    with pytest.raises(ShammahError) as caught:
        needed(listing("b.gguf", parts[0]), parts[0])
    assert caught.value.code == "model_not_found"
    assert parts[1] in caught.value.message
    assert "b.gguf" in caught.value.hint


@pytest.mark.parametrize(
    "paths",
    [
        ("config.json", "pytorch_model.bin"),
        ("config.json", "b.gguf"),
        ("adapter_config.json", "adapter_model.safetensors"),
        ("README.md",),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_it_is_fetched(paths: tuple[str, ...]) -> None:
    with pytest.raises(ShammahError) as caught:
        needed(listing(*paths))
    assert caught.value.code == "model_unsupported"


@pytest.mark.parametrize(
    "path",
    ["../evil", "/etc/passwd", "a/../../b", "a//b", "", ".", "a\\..\\b", "c:evil", "a\0b", "a/"],
)
def test_a_path_that_would_leave_the_directory_is_refused(path: str) -> None:
    with pytest.raises(ShammahError) as caught:
        check_file(RemoteFile(path, 1, SHA256, SHA1))
    assert caught.value.code == "hub_error"


@given(st.text(max_size=40))
def test_an_accepted_path_stays_inside(path: str) -> None:
    try:
        check_file(RemoteFile(path, 1, SHA256, SHA1))
    except ShammahError:
        return
    assert not path.startswith("/")
    assert not {"", ".", ".."} & set(path.split("/"))


@pytest.mark.parametrize(
    ("size", "sha256", "git_sha1"),
    [
        (-1, SHA256, SHA1),
        (1, "../../x", SHA1),
        (1, None, "short"),
        (1, None, None),
        (1, SHA256.upper(), SHA1),
    ],
)
def test_a_file_that_cannot_be_verified_is_refused(
    size: int, sha256: str | None, git_sha1: str | None
) -> None:
    with pytest.raises(ShammahError) as caught:
        check_file(RemoteFile("config.json", size, sha256, git_sha1))
    assert caught.value.code == "hub_error"


def test_small_files_are_hashed_as_git_does() -> None:
    content = b"hello\n"
    file = RemoteFile("a", len(content), None, "ce013625030ba8dba906f756967f9e9ca394464a")
    digest = file.digest()
    digest.update(content)
    assert digest.hexdigest() == file.etag
    large = RemoteFile("a", len(content), hashlib.sha256(content).hexdigest(), SHA1)
    digest = large.digest()
    digest.update(content)
    assert digest.hexdigest() == large.etag
