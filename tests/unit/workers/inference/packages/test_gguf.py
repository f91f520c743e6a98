"""GGUF files are judged by their headers, and nothing in one is believed."""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
from gguf import GGML_QUANT_SIZES, GGUFReader
from hypothesis import given
from hypothesis import strategies as st

from shammah.errors import ShammahError
from tests.fakes.gguf_files import TENSORS, TINY, damaged, gguf_file, parse, text, typed
from workers.inference.packages import gguf
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.packages.gguf import Header, read_header

STARTER = Path(sys.prefix, "share", "shammah", "SmolLM2-135M-Instruct.Q4_1.gguf")

VOCABULARY = "tokenizer.ggml.tokens"

needs_starter = pytest.mark.skipif(not STARTER.exists(), reason="scripts/test puts it there")


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def tiny(path: Path, **changes: Any) -> Path:
    """A small model with other metadata; a value of ``None`` leaves the key out."""
    metadata = {**TINY, **{key.replace("__", "."): value for key, value in changes.items()}}
    return write(path, gguf_file({k: v for k, v in metadata.items() if v is not None}))


def refusal(path: Path) -> tuple[str, str]:
    """Code and sentence with which the file is refused."""
    with pytest.raises(ShammahError) as caught:
        inspect_checkpoint(path)
    assert caught.value.hint
    assert caught.value.message.count(". ") == 0, "one sentence"
    return caught.value.code, caught.value.message


class TestAWholeHeader:
    def test_metadata_and_tensors(self) -> None:
        header = parse(gguf_file())
        assert isinstance(header, Header)
        assert header.text("general.architecture") == "llama"
        assert header.numbers("llama.block_count") == (1,)
        assert header.numbers("llama.rope.freq_base") == (10000.0,)
        table, query, norm = header.tensors
        assert (table.name, table.format, table.shape) == ("token_embd.weight", "Q8_0", (4, 32))
        assert (table.begin % 32, table.end - table.begin) == (0, 4 * 34)
        assert (query.format, query.elements, query.end - query.begin) == ("Q4_0", 1024, 32 * 18)
        assert (norm.format, norm.shape) == ("F32", (32,))

    def test_version_2_is_the_same(self) -> None:
        header = parse(gguf_file(version=2))
        assert isinstance(header, Header)
        assert header == parse(gguf_file())

    def test_another_alignment(self) -> None:
        metadata = {**TINY, "general.alignment": 256}
        header = parse(gguf_file(metadata, alignment=256))
        assert isinstance(header, Header)
        assert all(tensor.begin % 256 == 0 for tensor in header.tensors)

    def test_short_arrays_of_numbers_are_kept_and_others_passed_over(self, tmp_path: Path) -> None:
        long = [0] * (gguf.SHORT_ARRAY + 1)
        changes = {"tokenizer__ggml__tokens": ["a", "b"], "long": long, "per__layer": [1, 2, 3]}
        header = read_header(tiny(tmp_path / "a.gguf", **changes))
        assert header.numbers("per.layer") == (1, 2, 3)
        assert header.numbers("long") == header.numbers(VOCABULARY) == ()

    def test_texts_of_any_length_around_the_window(self, tmp_path: Path) -> None:
        random = Random(3)
        words = [random.choice("abc") * random.choice((0, 7, 200_000)) for _ in range(60)]
        path = tiny(tmp_path / "a.gguf", tokenizer__ggml__tokens=words, after="the texts")
        assert read_header(path).text("after") == "the texts"

    def test_number_formats_are_ggml_s(self) -> None:
        for kind, (block, size) in GGML_QUANT_SIZES.items():
            shape = struct.pack("<IQIQ", 1, block, int(kind), 0)
            head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + shape
            header = parse(head + bytes(-len(head) % 32 + size))
            assert isinstance(header, Header), header
            assert header.tensors[0].format == kind.name
            assert isinstance(parse(head + bytes(-len(head) % 32 + size - 1)), str)

    @needs_starter
    def test_a_published_file_reads_as_the_gguf_package_reads_it(self) -> None:
        theirs = GGUFReader(STARTER)  # type: ignore[no-untyped-call]
        ours = read_header(STARTER)
        assert {*ours.metadata} == {
            name for name in theirs.fields if "." in name and name[0] != "G"
        }
        for mine, one in zip(ours.tensors, theirs.tensors, strict=True):
            assert (mine.name, mine.format) == (one.name, one.tensor_type.name)
            assert mine.shape == tuple(map(int, one.shape))[::-1]
            assert (mine.begin, mine.end - mine.begin) == (one.data_offset, one.n_bytes)


class TestRefusals:
    @pytest.mark.parametrize(
        ("content", "code", "part"),
        [
            (b"", "model_corrupt", "too short"),
            (b"GGUF\x03", "model_corrupt", "too short"),
            (b"PK\x03\x04" * 9, "model_corrupt", "not a GGUF file"),
            (b"version https://git-lfs.github.com", "model_corrupt", "pointer of Git LFS"),
            (gguf_file(version=1), "model_unsupported", "of version 1"),
            (gguf_file(version=4), "model_unsupported", "of version 4"),
            (b"GGUF\0\0\0\x03" + bytes(64), "model_unsupported", "big-endian"),
            (gguf_file()[:300], "model_corrupt", "300 bytes end within its header"),
            (gguf_file()[:-1], "model_corrupt", "'output_norm.weight' ends at byte"),
            (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "model_corrupt", "keys, but at most"),
            (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1), "model_corrupt", "tensors, but at most"),
        ],
    )
    def test_a_whole_file(self, tmp_path: Path, content: bytes, code: str, part: str) -> None:
        found, sentence = refusal(write(tmp_path / "a.gguf", content))
        assert (found, part in sentence) == (code, True), sentence

    @pytest.mark.parametrize(
        ("value", "part"),
        [
            (struct.pack("<IIQ", 9, 8, 2**61), "end within its header"),
            (struct.pack("<IIQ", 9, 4, 2**62), "end within its header"),
            (struct.pack("<IQ", 8, 2**64 - 1), "end within its header"),
            (struct.pack("<IIQ", 9, 9, 0), "arrays within arrays"),
            (struct.pack("<II", 13, 0), "unknown type 13"),
            (struct.pack("<IIQ", 9, 99, 1), "unknown type 99"),
        ],
    )
    def test_a_value(self, value: bytes, part: str) -> None:
        assert part in str(parse(gguf_file({"k": value, **TINY})))

    @pytest.mark.parametrize("alignment", [0, 3, 2**17, 1.5, "32"])
    def test_an_alignment(self, alignment: object) -> None:
        assert "alignment" in str(parse(gguf_file({"general.alignment": alignment})))

    @pytest.mark.parametrize(
        ("rank", "shape", "kind", "offset", "part"),
        [
            (5, (1,) * 5, 0, 0, "5 dimensions"),
            (1, (0,), 0, 0, "the shape (0,)"),
            (2, (2**63, 2**63), 0, 0, "the shape"),
            (1, (33,), 8, 0, "the shape (33,)"),
            (1, (32,), 4, 0, "type 4"),
            (1, (32,), 0, 31, "the odd place 31"),
            (1, (32,), 0, 2**63, "ends at byte"),
        ],
    )
    def test_a_tensor(
        self, rank: int, shape: tuple[int, ...], kind: int, offset: int, part: str
    ) -> None:
        described = struct.pack(f"<I{len(shape)}QIQ", rank, *shape, kind, offset)
        head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + text("t") + described
        assert part in str(parse(head + bytes(500)))

    def test_what_is_there_twice(self) -> None:
        head = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (text("k") + typed(1))
        assert "key 'k' twice" in str(parse(head))
        one = text("t") + struct.pack("<IQIQ", 1, 8, 0, 0)
        head = b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + 2 * one
        assert "name of a tensor twice" in str(parse(head + bytes(200)))
        other = text("u") + struct.pack("<IQIQ", 1, 8, 0, 0)
        head = b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + one + other
        assert "lies upon another" in str(parse(head + bytes(200)))

    def test_a_header_without_end(self) -> None:
        words = struct.pack("<IIQ", 9, 0, gguf.MAX_HEADER_BYTES) + bytes(gguf.MAX_HEADER_BYTES)
        assert "header of more than" in str(parse(gguf_file({"k": words})))
        much = {f"k{index}": "x" * 10**6 for index in range(5)}
        assert "bytes of text" in str(parse(gguf_file(much)))


class TestDamage:
    def test_thirty_thousand_damaged_headers(self) -> None:
        read = sum(isinstance(parse(damaged(Random(seed))), Header) for seed in range(30_000))
        assert 1_000 < read < 29_000, "some damage is none, and most is"

    @given(st.binary(max_size=400))
    def test_any_bytes(self, content: bytes) -> None:
        parse(b"GGUF\x03\0\0\0" + content)

    @given(st.integers(0, len(gguf_file()) - 1), st.binary(min_size=1, max_size=9))
    def test_any_bytes_within_a_header(self, at: int, new: bytes) -> None:
        content = gguf_file()
        parse(content[:at] + new + content[at + len(new) :])

    def test_every_cut(self) -> None:
        content = gguf_file()
        for end in range(len(content)):
            assert isinstance(parse(content[:end]), str)


class TestAModel:
    def test_what_is_known_of_it(self, tmp_path: Path) -> None:
        path = tiny(tmp_path / "a.gguf")
        found = inspect_checkpoint(path)
        assert (found.format, found.directory, found.weights) == ("gguf", tmp_path, (path,))
        assert (found.architecture, found.context_length) == ("llama", 64)
        assert found.parameters == 4 * 32 + 32 * 32 + 32
        assert found.weight_bytes == path.stat().st_size
        assert found.tied
        shape = found.shape
        assert shape is not None
        assert (shape.layers, shape.hidden, shape.intermediate) == (1, 32, 96)
        assert (shape.heads, shape.kv_heads, shape.head_dim, shape.vocabulary) == (4, 2, 8, 4)

    def test_layers_that_differ_count_by_their_largest(self, tmp_path: Path) -> None:
        heads = {"llama__attention__head_count_kv": [1, 2, 1], "llama__attention__key_length": 16}
        shape = inspect_checkpoint(tiny(tmp_path / "a.gguf", **heads)).shape
        assert shape is not None
        assert (shape.kv_heads, shape.head_dim) == (2, 16)

    def test_more_heads_for_keys_than_for_queries_are_damage(self, tmp_path: Path) -> None:
        changes = {"llama__attention__head_count_kv": 2**32 - 1}
        code, sentence = refusal(tiny(tmp_path / "a.gguf", **changes))
        assert code == "model_corrupt"
        assert "4 attention heads, but 4294967295 key-value heads" in sentence

    @needs_starter
    def test_the_starter(self) -> None:
        found = inspect_checkpoint(STARTER)
        assert (found.architecture, found.context_length) == ("llama", 8192)
        assert found.parameters == 134_515_008
        assert found.shape is not None
        assert (found.shape.layers, found.shape.vocabulary, found.tied) == (30, 49152, True)

    @pytest.mark.parametrize(
        ("changes", "part"),
        [
            ({"general__type": "adapter"}, "an adapter"),
            ({"general__type": "mmproj"}, "the type 'mmproj'"),
            ({"general__architecture": "clip"}, "a projector of images"),
            ({"general__architecture": "whisper"}, "a model of speech"),
            ({"llama__pooling_type": 2}, "a model of embeddings"),
            ({"llama__attention__causal": False}, "a model of embeddings"),
            ({"general__architecture": None}, "names no architecture"),
            ({"general__architecture": "../x"}, "names no architecture"),
            ({"split__count": 3}, "one of 3 parts"),
        ],
    )
    def test_what_generates_no_text(
        self, tmp_path: Path, changes: Mapping[str, Any], part: str
    ) -> None:
        code, sentence = refusal(tiny(tmp_path / "a.gguf", **changes))
        assert (code, part in sentence) == ("model_unsupported", True), sentence

    @pytest.mark.parametrize(
        ("changes", "part"),
        [
            ({"llama__context_length": None}, "does not say llama.context_length"),
            ({"llama__block_count": 0}, "gives 0 as llama.block_count"),
            ({"llama__block_count": 1.5}, "gives 1.5 as llama.block_count"),
            ({"llama__block_count": 99}, "99 layers"),
            ({"llama__embedding_length": 64}, "64 numbers a token"),
        ],
    )
    def test_what_contradicts_itself(
        self, tmp_path: Path, changes: Mapping[str, Any], part: str
    ) -> None:
        code, sentence = refusal(tiny(tmp_path / "a.gguf", **changes))
        assert (code, part in sentence) == ("model_corrupt", True), sentence

    def test_without_weights(self, tmp_path: Path) -> None:
        assert "only a vocabulary" in refusal(write(tmp_path / "a.gguf", gguf_file(TINY, ())))[1]
        others = gguf_file(TINY, TENSORS[1:])
        assert "no token_embd.weight" in refusal(write(tmp_path / "b.gguf", others))[1]


class TestParts:
    def parts(self, directory: Path, total: int = 3) -> list[Path]:
        made = []
        for index, tensor in enumerate(TENSORS, 1):
            own = TINY if index == 1 else {}
            split = {"split.count": len(TENSORS), "split.tensors.count": total}
            path = directory / f"m-0000{index}-of-00003.gguf"
            made.append(write(path, gguf_file({**own, **split}, [tensor])))
        return made

    def test_any_part_stands_for_all(self, tmp_path: Path) -> None:
        parts = self.parts(tmp_path)
        for part in parts:
            found = inspect_checkpoint(part)
            assert found.weights == tuple(parts)
            assert found.parameters == 4 * 32 + 32 * 32 + 32
            assert found.weight_bytes == sum(one.stat().st_size for one in parts)

    def test_a_part_is_missing(self, tmp_path: Path) -> None:
        first, second, _ = self.parts(tmp_path)
        second.unlink()
        code, sentence = refusal(first)
        assert code == "model_incomplete"
        assert second.name in sentence
        assert "1 of 3 parts" in sentence

    def test_parts_of_different_models(self, tmp_path: Path) -> None:
        assert refusal(self.parts(tmp_path, total=4)[0])[0] == "model_corrupt"

    def test_a_name_that_cannot_be_is_one_file(self, tmp_path: Path) -> None:
        path = tiny(tmp_path / "m-00004-of-00003.gguf")
        assert inspect_checkpoint(path).weights == (path,)
