"""A Llama in a GGUF file as a Qwen2 directory of safetensors.

SmolLM2 is a Llama, and Qwen2 is a Llama with biases on q, k and v: with those biases at zero the
two compute the same numbers, and the starter goes through exactly the code that real Qwen models
go through. Without torch, which would take longer to install than the starter to make.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor, TokenType
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors import SafetensorError, TensorSpec, serialize_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

CONTEXT_LENGTH = 8192

_FORMAT_OF = "5.23.0"
"""The transformers release whose files these are, to the byte."""

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""llama.cpp's names of modules to those of transformers."""

_TENSOR = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.weight")


def convert(gguf: Path, directory: Path) -> None:
    """Write the model of a GGUF file into ``directory``.

    Raises:
        ValueError: the file holds another kind of model.
        OSError: the disk is full, for instance.
    """
    reader = GGUFReader(gguf)
    _write_weights(reader, directory / "model.safetensors")
    _tokenizer(reader).save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(_value(reader, "tokenizer.chat_template"))
    for name, content in (
        ("config.json", _config(reader)),
        ("generation_config.json", _generation_config(reader)),
        ("tokenizer_config.json", _tokenizer_config(reader)),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")


def _value(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise ValueError(f"the GGUF file does not say {key}")
    return field.contents()


def _write_weights(reader: GGUFReader, path: Path) -> None:
    heads = {
        "attn_q": _value(reader, "llama.attention.head_count"),
        "attn_k": _value(reader, "llama.attention.head_count_kv"),
    }
    tensors: dict[str, NDArray[np.uint16]] = {}
    for tensor in reader.tensors:
        found = _TENSOR.fullmatch(tensor.name)
        if found is None or found[2] not in _NAMES:
            raise ValueError(f"the GGUF file is not a plain Llama: it has {tensor.name}")
        layer, kind = found.groups()
        name = _NAMES[kind] if layer is None else f"model.layers.{layer}.{_NAMES[kind]}"
        weight = tensors[f"{name}.weight"] = _bfloat16(_weight(tensor, heads.get(kind)))
        if kind in ("attn_q", "attn_k", "attn_v"):
            tensors[f"{name}.bias"] = np.zeros(len(weight), np.uint16)
    try:
        serialize_file(
            {
                name: TensorSpec(
                    dtype="bfloat16",
                    shape=bits.shape,
                    data_ptr=bits.ctypes.data,
                    data_len=bits.nbytes,
                )
                for name, bits in tensors.items()
            },
            path,
            metadata={"format": "pt"},
        )
    except SafetensorError as error:  # how safetensors says that the disk is full
        raise OSError(str(error)) from error


def _weight(tensor: ReaderTensor, heads: int | None) -> NDArray[np.float32]:
    """In the order of transformers: llama.cpp rotates pairs of neighbours (`heads`: of q and k),
    transformers a head's first half with its second."""
    weight = dequantize(tensor.data, tensor.tensor_type)
    if heads is None:
        return weight
    pairs = weight.reshape(heads, len(weight) // heads // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _bfloat16(weight: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to the nearest, to the even one in the middle."""
    bits = np.ascontiguousarray(weight).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _tokenizer(reader: GGUFReader) -> Tokenizer:
    tokens: list[str] = _value(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _value(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(
        models.BPE(
            {token: number for number, token in enumerate(tokens)},
            merges,
            continuing_subword_prefix="",
            end_of_word_suffix="",
        )
    )
    # What the file calls "smollm": digits stand alone.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1")
    tokenizer.decoder = decoders.ByteLevel()
    kinds = _value(reader, "tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == TokenType.CONTROL
        ]
    )
    return tokenizer


def _config(reader: GGUFReader) -> dict[str, Any]:
    layers = _value(reader, "llama.block_count")
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": _value(reader, "tokenizer.ggml.bos_token_id"),
        "dtype": "bfloat16",
        "eos_token_id": _value(reader, "tokenizer.ggml.eos_token_id"),
        "hidden_act": "silu",
        "hidden_size": _value(reader, "llama.embedding_length"),
        "initializer_range": 0.02,
        "intermediate_size": _value(reader, "llama.feed_forward_length"),
        "layer_types": ["full_attention"] * layers,
        "max_position_embeddings": CONTEXT_LENGTH,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "num_attention_heads": _value(reader, "llama.attention.head_count"),
        "num_hidden_layers": layers,
        "num_key_value_heads": _value(reader, "llama.attention.head_count_kv"),
        "pad_token_id": _value(reader, "tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": float(_value(reader, "llama.attention.layer_norm_rms_epsilon")),
        "rope_parameters": {
            "rope_theta": float(_value(reader, "llama.rope.freq_base")),
            "rope_type": "default",
        },
        "sliding_window": None,
        "tie_word_embeddings": True,
        "transformers_version": _FORMAT_OF,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": _value(reader, "llama.vocab_size"),
    }


def _generation_config(reader: GGUFReader) -> dict[str, Any]:
    # <|im_end|> ends a turn, <|endoftext|> a document. Greedy, as the model is published: at
    # the temperature of its card, 0.2, one answer in three about the capital of France goes
    # astray after its first word ("The" has a probability of 0.155, "L" of 0.140).
    return {
        "bos_token_id": _value(reader, "tokenizer.ggml.bos_token_id"),
        "do_sample": False,
        "eos_token_id": [
            _value(reader, "tokenizer.ggml.eos_token_id"),
            _value(reader, "tokenizer.ggml.unknown_token_id"),
        ],
        "pad_token_id": _value(reader, "tokenizer.ggml.padding_token_id"),
        "transformers_version": _FORMAT_OF,
    }


def _tokenizer_config(reader: GGUFReader) -> dict[str, Any]:
    tokens: list[str] = _value(reader, "tokenizer.ggml.tokens")

    def token(role: str) -> str:
        number: int = _value(reader, f"tokenizer.ggml.{role}_token_id")
        return tokens[number]

    return {
        "backend": "tokenizers",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "model_max_length": CONTEXT_LENGTH,
        "pad_token": token("padding"),
        "tokenizer_class": "TokenizersBackend",
        "unk_token": token("unknown"),
        # For a config.json that says "qwen2", AutoTokenizer rebuilds the tokenizer with Qwen's own
        # splitting rules and NFC, whatever tokenizer.json says, unless an auto_map is present. An
        # empty one names no code to run, and makes it take `tokenizer_class` at its word.
        "auto_map": [],
    }
