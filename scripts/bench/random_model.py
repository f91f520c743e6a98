#!/usr/bin/env python3
"""Writes a Qwen2 of a known shape with random weights, for speed alone: it has no vocabulary.

    .venv/bin/python scripts/bench/random_model.py --shape 0.5B FOLDER         as a checkpoint
    .venv/bin/python scripts/bench/random_model.py --shape 0.5B FOLDER --gguf  for llama.cpp, too

The second writes FOLDER/bf16.gguf beside it (with gguf, which `pip install -e .` brings),
from which llama.cpp makes its own, to be given to decode.py:

    llama-quantize FOLDER/bf16.gguf FOLDER/Q8_0.gguf Q8_0
    llama-quantize FOLDER/bf16.gguf FOLDER/Q4_K_M.gguf Q4_K_M
    .venv/bin/python scripts/bench/decode.py --shape 0.5B --quantization both --prompt 512 \\
        --llama-bench llama-bench -m FOLDER/Q8_0.gguf -m FOLDER/Q4_K_M.gguf
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from workers.inference.packages.safetensors_header import read_header

SHAPES = {
    "tiny": (256, 4, 8, 2, 704, 2048),
    "135M": (576, 30, 9, 3, 1536, 49_152),
    "0.5B": (896, 24, 14, 2, 4864, 151_936),
    "1.5B": (1536, 28, 12, 2, 8960, 151_936),
    "7B": (3584, 28, 28, 4, 18_944, 152_064),
}
"""Hidden size, layers, heads, heads of keys and values, intermediate size, vocabulary."""

_UNTIED = ("7B",)
_BLOCK = 1 << 28
"""Numbers; what is larger repeats itself, as none of it is needed for speed."""

_CONTEXT, _THETA, _EPS = 32_768, 1e6, 1e-6
_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def random_model(directory: Path, shape: str) -> Path:
    """A checkpoint of this shape with random bfloat16 weights."""
    hidden, layers, heads, kv_heads, wide, vocabulary = SHAPES[shape]
    size = hidden // heads
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": wide,
        "vocab_size": vocabulary,
        "max_position_embeddings": _CONTEXT,
        "rope_theta": _THETA,
        "rms_norm_eps": _EPS,
        "tie_word_embeddings": shape not in _UNTIED,
        "torch_dtype": "bfloat16",
    }
    tensors = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        own = {
            "self_attn.q_proj.weight": (heads * size, hidden),
            "self_attn.k_proj.weight": (kv_heads * size, hidden),
            "self_attn.v_proj.weight": (kv_heads * size, hidden),
            "self_attn.o_proj.weight": (hidden, heads * size),
            "self_attn.q_proj.bias": (heads * size,),
            "self_attn.k_proj.bias": (kv_heads * size,),
            "self_attn.v_proj.bias": (kv_heads * size,),
            "mlp.gate_proj.weight": (wide, hidden),
            "mlp.up_proj.weight": (wide, hidden),
            "mlp.down_proj.weight": (hidden, wide),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        tensors |= {f"model.layers.{layer}.{name}": sides for name, sides in own.items()}
    if shape in _UNTIED:
        tensors["lm_head.weight"] = (vocabulary, hidden)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    _write_random(directory / "model.safetensors", tensors)
    return directory


def _write_random(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in tensors.items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            count = math.prod(shape)
            numbers = random.standard_normal(min(count, _BLOCK), np.float32)
            numbers = 1 + 0 * numbers if "norm" in name else 0.02 * numbers
            data = (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()
            while count > 0:
                file.write(data[: 2 * count])
                count -= _BLOCK


def write_gguf(directory: Path, shape: str) -> None:
    """The same weights in llama.cpp's format, with a vocabulary of nothing but numbers, since its
    server ends where a token has no text."""
    import gguf

    hidden, layers, heads, kv_heads, wide, vocabulary = SHAPES[shape]
    writer = gguf.GGUFWriter(directory / "bf16.gguf", "qwen2")
    writer.add_block_count(layers)
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(_THETA)
    writer.add_layer_norm_rms_eps(_EPS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{number}" for number in range(vocabulary)])
    writer.add_token_types([gguf.TokenType.NORMAL] * vocabulary)
    writer.add_token_merges(["t 0"])
    writer.add_eos_token_id(0)
    path = directory / "model.safetensors"
    data = np.memmap(path, np.uint8, "r")
    for tensor in read_header(path):
        name = tensor.name
        for old, new in _GGUF_NAMES.items():
            name = name.replace(f"{old}.", f"{new}.")
        size = 2 * tensor.elements
        stored = data[tensor.begin : tensor.begin + size]
        if len(tensor.shape) == 1:
            numbers = stored.view(np.uint16).astype(np.uint32) << 16
            writer.add_tensor(name, numbers.view(np.float32))
        else:
            rows = stored.reshape(tensor.shape[0], -1)
            writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="0.5B")
    parser.add_argument("--gguf", action="store_true")
    options = parser.parse_args()
    if not (options.folder / "model.safetensors").exists():
        random_model(options.folder, options.shape)
    if options.gguf:
        write_gguf(options.folder, options.shape)


if __name__ == "__main__":
    main()
