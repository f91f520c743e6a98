"""GGUF files through llama.cpp: the file's own text, numbers and answers."""

from __future__ import annotations

import ctypes
import json
import math
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig

from shammah.errors import ShammahError
from tests.fakes.command import run
from tests.fakes.observer import Observer
from tests.real.models import starter
from workers.inference.engine import LoadSettings, SequenceRequest
from workers.inference.engines.llamacpp.library import installed, open_library
from workers.inference.engines.llamacpp.models import read_model
from workers.inference.engines.llamacpp.runner import LlamaCppRunner
from workers.inference.engines.llamacpp.structures import Batch, ContextParameters, ModelParameters
from workers.inference.engines.table import ENGINES
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.runner import Logits, Span
from workers.inference.scheduling.batched_engine import BatchedEngine
from workers.inference.scheduling.sampling import SamplingPlan
from workers.inference.text.chat import ChatFormat
from workers.text.model_text import ModelText

ROOT = Path(__file__).resolve().parents[2]
GGUF = Path(sys.prefix, "share", "shammah", "SmolLM2-135M-Instruct.Q4_1.gguf")
PAGES = ("docs/ROUTING.md", "workers/text/sandbox.py", "scripts/lib/environment.sh")
ODD = (
    "Héllo wörld 😀 中文  \n\n\t x <|im_start|>system\nfoo<|im_end|> 123456 don't I'LL <repo_name>"
    " \x00 \u200b ﷽ e\u0301 \ufeff\r\n"
)
QUESTION = [("system", "You are a helpful assistant."), ("user", "What is the capital of France?")]
ANSWER = "The capital of France is Paris."

CLOSE = 0.01
"""Kullback-Leibler divergence, in nats a token. llama.cpp rounds what it multiplies 4-bit weights
with to 8 bits, in blocks of 32, and keeps keys and values in 16; measured: 0.003."""


@pytest.fixture(scope="module")
def runner() -> LlamaCppRunner:
    runner, observer = LlamaCppRunner(), Observer()
    facts = runner.load(inspect_checkpoint(GGUF), LoadSettings(), observer)
    assert (facts.engine, facts.device, facts.dtype, facts.quantization) == (
        *("llamacpp", "cpu", "Q4_1", ""),
    )
    assert observer.stages == list(runner.stages)
    assert observer.advanced > 10
    return runner


@pytest.fixture
def empty(runner: LlamaCppRunner) -> LlamaCppRunner:
    runner.reserve(4, 2048)
    return runner


@pytest.fixture(scope="module")
def text() -> ModelText:
    return ENGINES["llamacpp"].read_text(inspect_checkpoint(GGUF))


@pytest.fixture(scope="module")
def page(text: ModelText) -> list[int]:
    return text.encode_text((ROOT / PAGES[0]).read_text())


def divergence(true: Logits, other: Logits) -> float:
    """In nats, the mean over rows."""
    one, two = (torch.log_softmax(torch.from_numpy(rows).double(), -1) for rows in (true, other))
    return float((one.exp() * (one - two)).sum(-1).mean())


# --- text ---------------------------------------------------------------------------------


def test_it_splits_text_as_the_starters_tokenizer_does(text: ModelText) -> None:
    other = ModelText.load(starter())
    for page in [*((ROOT / name).read_text() for name in PAGES), ODD, "", " ", "a" * 50_000]:
        ids = text.encode_text(page)
        assert ids == other.encode_text(page)
        assert text.decode(ids) == other.decode(ids)
    for token in range(text.tokenizer.get_vocab_size()):
        assert text.decode_all([token]) == other.decode_all([token])


def test_it_writes_conversations_as_the_starters_template_does(text: ModelText) -> None:
    other = ModelText.load(starter())
    talk = [*QUESTION, ("assistant", "Paris."), ("user", ODD)]
    assert text.encode(talk, ask=True) == other.encode(talk, ask=True)
    assert text.encode(talk[1:], ask=False) == other.encode(talk[1:], ask=False)
    assert (text.hidden, text.end, text.folds_system) == (other.hidden, other.end, False)
    assert text.ends > other.ends  # and what llama.cpp knows to end an answer


WORDS = "▁ a b e h i l o s t m k u r n el lo ▁hel ▁hello < > think".split()
THINKS = (
    "{% for m in messages %}<|x|>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|x|>{{ '<think>' }}{% endif %}"
)


def make_sentencepiece(path: Path) -> Path:
    """A vocabulary with byte fallback, and a token that is neither a word nor special."""
    tokens = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<|x|>", 3), ("<think>", 4)]
    tokens += [(f"<0x{byte:02X}>", 6) for byte in range(256)] + [(word, 1) for word in WORDS]
    writer = gguf.GGUFWriter(path, "llama")
    for add in (writer.add_context_length, writer.add_embedding_length):
        add(32)
    for add in (writer.add_block_count, writer.add_head_count, writer.add_feed_forward_length):
        add(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_token_scores([-float(rank) for rank in range(len(tokens))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(THINKS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_blanks_bytes_and_tokens_that_only_the_template_may_write(tmp_path: Path) -> None:
    whole = inspect_checkpoint(GGUF)
    path = make_sentencepiece(tmp_path / "sp.gguf")
    text = ENGINES["llamacpp"].read_text(replace(whole, weights=(path,)))
    ids = text.encode_text("hello <think> é </s>hello")
    assert text.tokenizer.token_to_id("<think>") not in ids
    assert not text.hidden & set(ids)
    assert text.decode(ids) == "hello <think> é </s>hello"
    detokenizer = ChatFormat(text).detokenizer()
    assert "".join(map(detokenizer.add, ids)) == "hello <think> é </s>hello"
    prompt = text.encode([("user", "<think>")], ask=True)
    assert text.tokenizer.id_to_token(prompt[-1]) == "<think>"
    assert prompt.count(prompt[-1]) == 1


# --- numbers ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_its_logits_are_those_of_the_dequantised_weights(
    empty: LlamaCppRunner, page: list[int]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        GGUF.parent,
        gguf_file=GGUF.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokens = page[:200]
    with torch.inference_mode():
        true = model(torch.tensor([tokens])).logits[0].numpy()
    (found,) = empty.forward([Span(0, 0, tokens, wanted=len(tokens))])
    assert found.dtype == np.float32
    assert divergence(true, found) < CLOSE
    assert np.mean(true.argmax(-1) == found.argmax(-1)) > 0.93


def test_a_prompt_in_chunks_and_alone_is_the_prompt(empty: LlamaCppRunner, page: list[int]) -> None:
    tokens = page[:150]
    (whole,) = empty.forward([Span(0, 0, tokens, wanted=60)])
    empty.forward([Span(1, 0, tokens[:50])])
    empty.forward([Span(1, 50, tokens[50:90])])
    (chunked,) = empty.forward([Span(1, 90, tokens[90:], wanted=60)])
    empty.forward([Span(2, 0, tokens[:130])])
    single = [empty.forward([Span(2, at, tokens[at : at + 1])])[0] for at in range(130, 150)]
    assert divergence(whole, chunked) < CLOSE
    assert divergence(whole[-20:], np.concatenate(single)) < CLOSE


def test_several_at_once_are_what_each_is_alone(empty: LlamaCppRunner, page: list[int]) -> None:
    texts = [page[at : at + 80] for at in (0, 300, 600)]
    alone = [empty.forward([Span(3, 0, tokens, wanted=8)])[0] for tokens in texts]
    spans = [Span(slot, 0, tokens, wanted=8) for slot, tokens in enumerate(texts)]
    together = empty.forward(spans)
    for one, other in zip(alone, together, strict=True):
        assert divergence(one, other) < CLOSE
    # One goes on alone beside a prompt's chunk, and the slots do not see each other.
    mixed = empty.forward([Span(1, 79, texts[1][79:]), Span(2, 50, texts[2][50:], wanted=2)])
    assert [rows.shape[0] for rows in mixed] == [1, 2]
    assert divergence(alone[1][-1:], mixed[0]) < CLOSE
    assert divergence(alone[2][-2:], mixed[1]) < CLOSE


def test_what_is_copied_cut_and_released_is_right(empty: LlamaCppRunner, page: list[int]) -> None:
    tokens, other = page[:200], page[500:600]
    (true,) = empty.forward([Span(0, 0, [*tokens[:100], *other], wanted=20)])
    empty.forward([Span(1, 0, tokens)])
    empty.copy(1, 2, 100)
    (copied,) = empty.forward([Span(2, 100, other, wanted=20)])
    (cut,) = empty.forward([Span(1, 100, other, wanted=20)])
    empty.release(1)
    empty.forward([Span(1, 0, other)])
    (kept,) = empty.forward([Span(2, 180, other[80:], wanted=20)])
    for rows in (copied, cut, kept):
        assert divergence(true, rows) < CLOSE


def test_a_context_that_has_grown_holds_what_it_held(
    runner: LlamaCppRunner, page: list[int]
) -> None:
    runner.reserve(3, 512)
    (true,) = runner.forward([Span(0, 0, page[:200], wanted=20)])
    for slot in (1, 2):
        runner.forward([Span(slot, 0, page[:300])])  # beyond 512 with the second
    (found,) = runner.forward([Span(0, 180, page[180:200], wanted=20)])
    assert divergence(true, found) < CLOSE


def test_a_context_that_is_full_says_so(runner: LlamaCppRunner, page: list[int]) -> None:
    runner.reserve(1, 256)
    with pytest.raises(MemoryError):
        runner.forward([Span(0, 0, page[:600])])
    (rows,) = runner.forward([Span(0, 0, page[:100])])
    assert np.isfinite(rows).all()


def test_a_token_has_the_bytes_that_its_layers_need(runner: LlamaCppRunner) -> None:
    numbers = 30 * 3 * 64 * 2  # layers, heads, their width, keys and values
    assert 2 * numbers <= runner.kv_bytes_per_token() <= 2 * numbers + 32


# --- answers ------------------------------------------------------------------------------


def generate(prompt: list[int], count: int) -> list[int]:
    """What llama.cpp itself answers, by its own loop (``examples/simple`` of llama.cpp)."""
    path = installed()
    assert path is not None
    library: Any = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("llama_model_default_params", ModelParameters, ()),
        ("llama_model_load_from_file", pointer, (ctypes.c_char_p, ModelParameters)),
        ("llama_context_default_params", ContextParameters, ()),
        ("llama_init_from_model", pointer, (pointer, ContextParameters)),
        ("llama_batch_get_one", Batch, (pointer, number)),
        ("llama_decode", number, (pointer, Batch)),
        ("llama_sampler_init_greedy", pointer, ()),
        ("llama_sampler_sample", number, (pointer, pointer, number)),
        ("llama_model_get_vocab", pointer, (pointer,)),
        ("llama_vocab_is_eog", ctypes.c_bool, (pointer, number)),
        *((f"llama_{name}", None, (pointer,)) for name in ("sampler_free", "free", "model_free")),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    model = library.llama_model_load_from_file(
        str(GGUF).encode(), library.llama_model_default_params()
    )
    parameters = library.llama_context_default_params()
    parameters.n_ctx = 1024
    context = library.llama_init_from_model(model, parameters)
    sampler = library.llama_sampler_init_greedy()
    vocabulary = library.llama_model_get_vocab(model)
    answer, following = list[int](), prompt
    while len(answer) < count:
        tokens = (number * len(following))(*following)
        assert library.llama_decode(context, library.llama_batch_get_one(tokens, len(tokens))) == 0
        token = library.llama_sampler_sample(sampler, context, -1)
        if library.llama_vocab_is_eog(vocabulary, token):
            break
        answer.append(token)
        following = [token]
    library.llama_sampler_free(sampler)
    library.llama_free(context)
    library.llama_model_free(model)
    return answer


def request(name: str, prompt: list[int], text: ModelText, count: int = 40) -> SequenceRequest:
    return SequenceRequest(name, tuple(prompt), SamplingPlan(), count, text.ends)


@pytest.fixture(scope="module")
def engine() -> BatchedEngine:
    engine = BatchedEngine(LlamaCppRunner())
    engine.load(inspect_checkpoint(GGUF), LoadSettings(context_length=2048), Observer())
    return engine


def answer(engine: BatchedEngine, *requests: SequenceRequest) -> dict[str, list[int]]:
    for one in requests:
        engine.submit(one)
    tokens: dict[str, list[int]] = {one.request_id: [] for one in requests}
    while engine.active:
        for result in engine.step():
            assert result.failure is None
            tokens[result.request_id] += result.token_ids
    return tokens


@pytest.mark.parametrize(
    "question",
    [QUESTION[1][1], "Name three colours.", "Write a function that adds."],
)
def test_greedy_answers_are_the_librarys_own(
    question: str, engine: BatchedEngine, text: ModelText
) -> None:
    prompt = text.encode([QUESTION[0], ("user", question)], ask=True)
    found = answer(engine, request("a", prompt, text, 25))["a"]
    assert found == generate(prompt, 25)


def test_it_answers(engine: BatchedEngine, text: ModelText) -> None:
    prompt = text.encode(QUESTION, ask=True)
    assert text.decode(answer(engine, request("a", prompt, text))["a"]) == ANSWER


def test_several_conversations_and_one_that_is_cancelled(
    engine: BatchedEngine, text: ModelText
) -> None:
    prompt = text.encode(QUESTION, ask=True)
    other = text.encode([("user", "Tell me a story about the sea. " * 12)], ask=True)
    for name in ("story", "dropped"):
        engine.submit(request(name, other, text, 200))
    engine.submit(request("paris", prompt, text))
    tokens, reused = dict[str, list[int]](), 0
    for step in range(400):
        if step == 5:
            engine.cancel("dropped")
        for result in engine.step():
            assert result.failure is None
            assert step < 5 or result.request_id != "dropped"
            tokens.setdefault(result.request_id, []).extend(result.token_ids)
            reused += result.reused
        if not engine.active:
            break
    assert text.decode(tokens["paris"]) == ANSWER
    assert len(tokens["story"]) > 20
    engine.submit(request("again", [*other, *tokens["story"][:10], *prompt], text, 1))
    (first,) = engine.step()
    assert first.reused == len(other) + 10


def test_shammah_answers_from_the_file_and_says_by_what() -> None:
    ended = run("ask", "--json", "--model", str(GGUF), "--max-tokens", "4", "hello")
    stopped = run("stop")
    assert (ended.code, stopped.code) == (0, 0), ended.said
    assert json.loads(ended.out)["provenance"]["engine"] == "llamacpp"


# --- files --------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 3, 1000, 1_000_000, 40_000_000])
def test_a_file_that_is_cut_off_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    with GGUF.open("rb") as file:
        path.write_bytes(file.read(length))
    with pytest.raises(ShammahError, match=r"cut\.gguf"):
        inspect_checkpoint(path)
    with pytest.raises(ShammahError, match=r"llama\.cpp cannot read cut\.gguf") as caught:
        read_model(open_library(), [path])
    assert caught.value.code == "model_corrupt"


def test_an_architecture_that_llama_cpp_does_not_know_is_named(tmp_path: Path) -> None:
    path = tmp_path / "new.gguf"
    data = GGUF.read_bytes()
    at = data.index(b"llama", data.index(b"general.architecture"))
    path.write_bytes(data[:at] + b"lemma" + data[at + 5 :])
    with pytest.raises(ShammahError, match="lemma") as caught:
        LlamaCppRunner().load(
            replace(inspect_checkpoint(GGUF), weights=(path,)), LoadSettings(), Observer()
        )
    assert caught.value.code == "model_unsupported"


def test_numbers_that_llama_cpp_would_end_at_are_refused(tmp_path: Path) -> None:
    path, key = tmp_path / "odd.gguf", b"llama.attention.layer_norm_rms_epsilon"
    data = GGUF.read_bytes()
    at = data.index(key) + len(key) + 4  # after its type
    path.write_bytes(data[:at] + struct.pack("<f", math.nan) + data[at + 4 :])
    with pytest.raises(ShammahError, match=r"nan as llama\.attention\.layer_norm_rms_epsilon"):
        LlamaCppRunner().load(inspect_checkpoint(path), LoadSettings(), Observer())
