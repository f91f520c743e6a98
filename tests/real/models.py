"""Small models for tests: random weights, real formats, a real tokenizer; an engine without any.

Only the functions that make weights with transformers import torch.
"""

from __future__ import annotations

import json
import math
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shammah.models.catalogue import starter_directory
from workers.inference.engine import (
    EngineFacts,
    LoadObserver,
    LoadSettings,
    SequenceRequest,
    StepResult,
)
from workers.inference.packages.adapter_file import Adapter
from workers.inference.packages.checkpoint import Checkpoint

KEPT_KERNELS = Path(sys.prefix, "share", "shammah", "kernels")
"""Where tests keep machine code, so that only their first run ever compiles."""

CONTEXT_LENGTH = 640
HIDDEN, LAYERS, HEADS, KV_HEADS = 32, 3, 4, 2
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 384

SCRIPTED_CHUNK = 8
LOAD_PATIENCE_S = 20.0

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TURNS = (
    "{% for message in messages %}"
    "{{ bos_token + message['role'] + ': ' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token + 'assistant:' }}{% endif %}"
)

_CORPUS = (
    "the quick brown fox jumps over the lazy dog and the dog sleeps on",
    "what is the capital of france? the capital of france is paris.",
    "system user assistant question answer hello world",
)

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": CONTEXT_LENGTH,
    "eos_token_id": 0,
    "tie_word_embeddings": True,
}


def make_tokenizer(directory: Path, template: str | None = CHATML) -> Any:
    """Write a byte-level BPE tokenizer of 384 tokens; returns the `tokenizers.Tokenizer`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": IM_END}
    if template is not None:
        settings["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer


def write_safetensors(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of float32 zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in tensors.items():
        end = position + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(position))


def write_checkpoint(directory: Path, shards: int = 1) -> Path:
    """A model directory that looks whole, without a model in it (no torch)."""
    make_tokenizer(directory)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    tensors = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    tensors |= {f"model.layers.{n}.mlp.weight": (HIDDEN, HIDDEN) for n in range(LAYERS)}
    if shards == 1:
        write_safetensors(directory / "model.safetensors", tensors)
        return directory
    names = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    places = {name: names[n % shards] for n, name in enumerate(tensors)}
    for shard in names:
        own = {name: tensors[name] for name, place in places.items() if place == shard}
        write_safetensors(directory / shard, own)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def write_manifest(directory: Path, revision: str = "r1") -> None:
    """The manifest of the files that are in ``directory`` now."""
    files = {path.name: {"size": path.stat().st_size} for path in directory.iterdir()}
    manifest = {"format": 1, "revision": revision, "files": files}
    (directory / "shammah-manifest.json").write_text(json.dumps(manifest))


def make_qwen2(directory: Path, *, tied: bool = True, max_shard_size: str = "5GB") -> Path:
    """A random Qwen2 with biases that are not zero; the same weights for the same ``tied``."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    settings = {**CONFIG, "tie_word_embeddings": tied}
    return _save(directory, Qwen2ForCausalLM, Qwen2Config(**settings), max_shard_size)


def make_llama(directory: Path) -> Path:
    """A random Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {key: CONFIG[key] for key in CONFIG if key not in ("architectures", "model_type")}
    return _save(directory, LlamaForCausalLM, LlamaConfig(**settings), "5GB")


def make_qwen3(directory: Path) -> Path:
    """A random Qwen3: norms of queries and keys, no biases, heads of their own size."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    settings = {key: CONFIG[key] for key in CONFIG if key not in ("architectures", "model_type")}
    return _save(directory, Qwen3ForCausalLM, Qwen3Config(**settings, head_dim=16), "5GB")


def make_byte_fallback(directory: Path) -> Path:
    """A random Llama with a tokenizer of Llama 2's kind: unknown characters are spelt as bytes.
    Made without torch."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    _write_llama(directory)
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [f"\u2581word{number}" for number in range(VOCABULARY - len(pieces))]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = [AddedToken(piece, special=True, normalized=False) for piece in pieces[:3]]
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TURNS}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def _write_llama(directory: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    directory.mkdir(parents=True)
    changes = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "eos_token_id": 2}
    (directory / "config.json").write_text(json.dumps(CONFIG | changes))
    attention = {"q": (HIDDEN, HIDDEN), "o": (HIDDEN, HIDDEN)}
    attention |= dict.fromkeys("kv", (HIDDEN * KV_HEADS // HEADS, HIDDEN))
    inner = CONFIG["intermediate_size"]
    dense = {"gate": (inner, HIDDEN), "up": (inner, HIDDEN), "down": (HIDDEN, inner)}
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for number in range(LAYERS):
        layer = f"model.layers.{number}"
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": attention[name] for name in attention}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": dense[name] for name in dense}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{norm}.weight"] = (HIDDEN,)
    chance = np.random.default_rng(1)
    weights = {
        name: (chance.normal(0, 0.4, shape) if len(shape) == 2 else np.ones(shape))
        for name, shape in shapes.items()
    }
    found = {name: weight.astype(np.float32) for name, weight in weights.items()}
    save_file(found, directory / "model.safetensors", {"format": "pt"})


def make_windowed(directory: Path) -> Path:
    """A random Mistral whose layers see 24 tokens back."""
    from transformers import MistralConfig, MistralForCausalLM

    settings = {key: CONFIG[key] for key in CONFIG if key not in ("architectures", "model_type")}
    config = MistralConfig(**settings, sliding_window=24, head_dim=8)
    return _save(directory, MistralForCausalLM, config, "5GB")


def _save(directory: Path, model_class: Any, config: Any, max_shard_size: str) -> Path:
    import torch
    from transformers import GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = model_class(config)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                # Large enough that answers are varied and logits far apart.
                parameter.normal_(0, 0.4, generator=random)
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=[0, 2])
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    make_tokenizer(directory)
    return directory


def starter() -> Path:
    """The real starter model; tests that need it fail where it is not installed."""
    directory = starter_directory()
    assert directory.is_dir(), f"{directory} is missing: run shammah models pull starter"
    return directory


@dataclass
class ScriptedEngine:
    """Answers everything with the tokens of ``answer``, in chunks and turns like a real one.

    It loads when ``loading`` is set, and tells ``on_step`` the number of each step.
    """

    answer: list[int]
    name: str = "fake"
    stages: tuple[str, ...] = ("pretend",)
    loading: threading.Event = field(default_factory=threading.Event)
    on_step: Callable[[int], None] = lambda number: None
    on_keep: Callable[[], None] = lambda: None
    steps: int = 0
    turns: deque[SequenceRequest] = field(default_factory=deque)
    done: dict[str, int] = field(default_factory=dict)
    submitted: list[SequenceRequest] = field(default_factory=list)
    adapters: list[Adapter] = field(default_factory=list)
    keeps: list[bool] = field(default_factory=list)

    @property
    def active(self) -> int:
        return len(self.turns)

    @property
    def waiting(self) -> int:
        return 0

    def prepare(self) -> None:
        """Nothing to import."""

    def load(
        self, checkpoint: Checkpoint, settings: LoadSettings, observer: LoadObserver
    ) -> EngineFacts:
        observer.stage("pretend")
        assert self.loading.wait(LOAD_PATIENCE_S)
        return EngineFacts("fake", "cpu", "float32")

    def holds(self, adapter: str) -> bool:
        return any(one.key == adapter for one in self.adapters)

    def add_adapter(self, adapter: Adapter) -> None:
        self.adapters.append(adapter)

    def submit(self, request: SequenceRequest) -> None:
        self.submitted.append(request)
        self.turns.append(request)
        self.done[request.request_id] = -len(request.prompt)

    def cancel(self, request_id: str) -> None:
        self.turns = deque(r for r in self.turns if r.request_id != request_id)

    def keep(self, enough: Callable[[], bool], *, last: bool) -> None:
        self.keeps.append(last)
        self.on_keep()

    def step(self) -> list[StepResult]:
        self.steps += 1
        self.on_step(self.steps)
        request = self.turns.popleft()
        result = self.advance(request)
        if result.finish_reason is None and result.failure is None:
            self.turns.append(request)
        return [result]

    def advance(self, request: SequenceRequest) -> StepResult:
        name = request.request_id
        at = self.done[name]
        prefilled = min(SCRIPTED_CHUNK, max(0, -at))
        at += prefilled
        self.done[name] = at
        if at < 0:
            return StepResult(name, prefilled)
        if at == len(self.answer):
            return StepResult(name, prefilled, 1, (), "stop")
        self.done[name] += 1
        reason = "length" if at + 1 == request.max_new_tokens else None
        return StepResult(name, prefilled, 1, (self.answer[at],), reason)


def make_random(
    directory: Path, family: str, settings: Mapping[str, Any], spread: float
) -> Checkpoint:
    """A random model of transformers' ``family``. ``spread``: of its weights, large enough that its
    logits are far apart."""
    import torch
    import transformers

    from workers.inference.packages.checkpoint import inspect_checkpoint

    model = getattr(transformers, f"{family}ForCausalLM")(
        getattr(transformers, f"{family}Config")(**settings)
    )
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, spread, generator=random)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(directory)
    make_tokenizer(directory)
    return inspect_checkpoint(directory)
