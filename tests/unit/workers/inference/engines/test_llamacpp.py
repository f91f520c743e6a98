"""What of the llamacpp engine needs no model: layouts, passes, and what is said where it lacks."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shammah.errors import ShammahError
from shammah.models.catalogue import GIB
from workers.inference.engine import LoadSettings
from workers.inference.engines.llamacpp import library, spec
from workers.inference.engines.llamacpp.context import OUTPUTS, PASS
from workers.inference.engines.llamacpp.runner import LlamaCppRunner, passes
from workers.inference.engines.llamacpp.structures import (
    Batch,
    ContextParameters,
    ModelParameters,
    differences,
)
from workers.inference.packages.adapter_file import Adapter
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.runner import Span

FILE = Checkpoint(
    Path("/m"), "llama", "llama", 8192, (Path("/m/a.gguf"),), GIB, GIB, "", format="gguf"
)


# --- layouts ------------------------------------------------------------------------------


def usual() -> tuple[ModelParameters, ContextParameters, Batch]:
    """What a build that is laid out as expected returns."""
    model = ModelParameters(
        n_gpu_layers=-1, split_mode=1, load_mode=-1, lazy_mode=1, use_extra_bufts=True
    )
    context = ContextParameters(
        n_ctx=512,
        n_batch=2048,
        n_ubatch=512,
        n_seq_max=1,
        n_outputs_max_per_seq=1,
        n_threads=4,
        n_threads_batch=4,
        rope_scaling_type=-1,
        pooling_type=-1,
        attention_type=-1,
        flash_attn_type=-1,
        defrag_thold=-1,
        type_k=1,
        type_v=1,
        offload_kqv=True,
        no_perf=True,
        op_offload=True,
        swa_full=True,
    )
    return model, context, Batch(token=1, pos=1, n_seq_id=1, seq_id=1, logits=1)


def inserted(structure: Any, at: int, size: int) -> Any:
    """The structure as a build would return it that has one more field, of zeros."""
    data = bytes(structure)
    moved = (data[:at] + bytes(size) + data[at:])[: len(data)]
    return type(structure).from_buffer_copy(moved)


def test_the_expected_layout_has_no_differences() -> None:
    assert list(differences(*usual())) == []


@pytest.mark.parametrize("name", ["n_gpu_layers", "load_mode", "tensor_split", "vocab_only"])
def test_a_new_field_among_a_models_parameters_is_noticed(name: str) -> None:
    model, context, batch = usual()
    at = getattr(ModelParameters, name)
    other = inserted(model, at.offset, max(4, at.size))
    assert any(one.startswith("llama_model_params.") for one in differences(other, context, batch))


@pytest.mark.parametrize(
    "name", ["n_ctx", "n_outputs_max", "n_threads", "yarn", "type_k", "abort_callback", "swa_full"]
)
def test_a_new_field_among_a_contexts_parameters_is_noticed(name: str) -> None:
    model, context, batch = usual()
    other = inserted(context, getattr(ContextParameters, name).offset, 8)
    found = list(differences(model, other, batch))
    assert found
    assert all(one.startswith("llama_context_params.") for one in found)


def test_another_batch_is_noticed() -> None:
    model, context, batch = usual()
    assert list(differences(model, context, inserted(batch, Batch.embd.offset, 8))) == [
        "llama_batch.pos"
    ]


# --- the shared object --------------------------------------------------------------------


def test_without_the_wheel_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not spec.LLAMACPP.is_installed
    assert spec.LLAMACPP.install == "pip install 'shammah[llamacpp]'"


def test_the_wheel_is_found_without_importing_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / library.PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit")
    (package / f"{library.PACKAGE}.abi3.so").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert library.installed() == package / f"{library.PACKAGE}.abi3.so"
    assert spec.LLAMACPP.is_installed


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(b"\x7fELF")
    with pytest.raises(ShammahError, match="it cannot be loaded") as caught:
        library.Library(tmp_path / "x.so")
    assert caught.value.code == "engine_unavailable"


# --- placing ------------------------------------------------------------------------------


def test_it_needs_what_the_file_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "free_main_memory", lambda: 4 * GIB)
    placement = spec.place(FILE, LoadSettings())
    assert (placement.device, placement.needed, placement.free) == ("cpu", GIB, 4 * GIB)


def test_too_little_memory_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "free_main_memory", lambda: 4 * GIB)
    with pytest.raises(ShammahError, match=r"needs 8\.5 GiB.*only 4\.0 GiB"):
        spec.place(replace(FILE, weight_bytes=8 * GIB), LoadSettings())


def test_a_gpu_that_the_wheel_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnTheProcessor:
        def free_gpu_memory(self) -> None:
            return None

    monkeypatch.setattr(library, "open_library", OnTheProcessor)
    with pytest.raises(ShammahError, match="on the processor alone, and not on cuda") as caught:
        spec.place(FILE, LoadSettings("cuda"))
    assert caught.value.code == "device_unavailable"


def test_an_adapter_is_refused() -> None:
    with pytest.raises(ShammahError, match="without any") as caught:
        LlamaCppRunner(1).add_adapter(Adapter("key", "mine", {}))
    assert caught.value.code == "adapter_unsupported"


# --- passes -------------------------------------------------------------------------------


def told(spans: list[Span]) -> Iterator[tuple[list[int], list[int], list[int], list[int]]]:
    for rows in passes(spans):
        yield (
            rows.tokens.tolist(),
            rows.positions.tolist(),
            rows.slots.tolist(),
            rows.wanted.tolist(),
        )


def test_spans_are_one_pass() -> None:
    spans = [Span(3, 10, [7, 8, 9]), Span(0, 0, [5, 6], wanted=2), Span(1, 4, (1,))]
    assert list(told(spans)) == [
        ([7, 8, 9, 5, 6, 1], [10, 11, 12, 0, 1, 4], [3, 3, 3, 0, 0, 1], [0, 0, 1, 1, 1, 1])
    ]


def test_no_pass_has_too_many_tokens() -> None:
    parts = list(passes([Span(0, 0, range(PASS - 1)), Span(1, 5, range(PASS))]))
    assert [len(rows.tokens) for rows in parts] == [PASS, PASS - 1]
    joined = np.concatenate([rows.tokens for rows in parts]).tolist()
    assert joined == [*range(PASS - 1), *range(PASS)]


def test_no_pass_has_too_many_rows_of_logits() -> None:
    count = OUTPUTS + 10
    parts = list(passes([Span(0, 0, range(5)), Span(1, 0, range(count), wanted=count)]))
    assert [int(rows.wanted.sum()) for rows in parts] == [OUTPUTS, 11]
    assert sum(len(rows.tokens) for rows in parts) == 5 + count
