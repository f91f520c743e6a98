"""Which packed matrices a model has, of which of its tensors, with how many bits. Pure.

Every linear layer's tensors are packed one after the other, each padded to whole panels, so
that q and k become one matrix, and gate and up another. In ``int8``, what rounding leaves of v is
packed once more, as channels to be added: v is the smallest tensor, 1 to 3 % of all weights, and
its rounding alone does a quarter of all the damage (docs/PERFORMANCE.md). In ``int4``, v, and
down in the first and the last eighth of the layers keep 8 bits for the same reason, and embedding
and head 6 (llama.cpp's Q4_K_M likewise, with 6 bits for all and down in half of the layers). What
was published in 4 bits keeps them, and 8 in embedding and head.
"""

from __future__ import annotations

from dataclasses import replace

from shammah.bus.record import record
from workers.inference.engines.native.architecture import Architecture
from workers.inference.engines.native.layout import GROUP, PANEL, packed_sizes, padded
from workers.inference.engines.native.quantized_file import Part

_EMBEDDING, _HEAD, _FINAL_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_LAYER = "model.layers.{}."


@record
class Source:
    """A tensor of a layer that becomes ``channels`` channels, or what rounding left of it."""

    name: str
    channels: int
    remainder: bool = False


@record
class PackedMatrix:
    """One matrix of each of these layers (``(0,)``: one for all).

    The channels of each source are padded to a multiple of ``padding``.
    """

    name: str
    layers: tuple[int, ...]
    inputs: int
    sources: tuple[Source, ...]
    padding: int = PANEL
    bits: int = 8

    @property
    def channels(self) -> int:
        """Those that pad it included."""
        return sum(padded(source.channels, self.padding) for source in self.sources)


@record
class PlainVector:
    """One float32 vector of every layer (or one for all)."""

    name: str
    layers: int
    sources: tuple[Source, ...]
    padding: int = 1

    @property
    def size(self) -> int:
        return sum(padded(source.channels, self.padding) for source in self.sources)


def matrices(architecture: Architecture, quantization: str) -> tuple[PackedMatrix, ...]:
    """``quantization``: ``int8`` or ``int4``."""
    a, bits = architecture, 4 if quantization == "int4" else 8
    q, kv, wide = a.heads * a.head_size, a.kv_heads * a.head_size, a.intermediate
    attention, mlp = _LAYER + "self_attn.{}_proj.weight", _LAYER + "mlp.{}_proj.weight"
    qk = (Source(attention.format("{}", "q"), q), Source(attention.format("{}", "k"), kv))
    v = Source(attention.format("{}", "v"), kv)
    vs = (v, replace(v, remainder=True)) if bits == 8 else (v,)
    output = (Source(attention.format("{}", "o"), a.hidden),)
    gate_up = tuple(Source(mlp.format("{}", name), wide) for name in ("gate", "up"))
    down = (Source(mlp.format("{}", "down"), a.hidden),)
    every, eighth = tuple(range(a.layers)), -(-a.layers // 8)
    more = bits if a.published else 8
    table = 8 if bits == 8 or a.published else 6
    head = PackedMatrix("head", (0,), a.hidden, (Source(_HEAD, a.vocabulary),), bits=table)
    outer = () if more == bits else (*every[:eighth], *every[max(eighth, a.layers - eighth) :])
    inner = tuple(layer for layer in every if layer not in outer)
    return (
        replace(head, name="embedding", sources=(Source(_EMBEDDING, a.vocabulary),)),
        *(() if a.tied else (head,)),
        PackedMatrix("qk", every, inputs=a.hidden, sources=qk, padding=PANEL, bits=bits),
        PackedMatrix("v", every, a.hidden, vs, bits=more),
        PackedMatrix("output", every, inputs=q, sources=output, padding=PANEL, bits=bits),
        PackedMatrix("gate_up", every, inputs=a.hidden, sources=gate_up, padding=GROUP, bits=bits),
        PackedMatrix("down", inner, inputs=wide, sources=down, padding=PANEL, bits=bits),
        PackedMatrix("outer_down", outer, wide, down),
    )


def vectors(architecture: Architecture) -> tuple[PlainVector, ...]:
    """What an architecture does not have is there, with a size of 0."""
    a = architecture
    q, kv = a.heads * a.head_size, a.kv_heads * a.head_size
    bias, norm = _LAYER + "self_attn.{}_proj.bias", _LAYER + "self_attn.{}_norm.weight"
    biases = tuple(
        Source(bias.format("{}", name), count) for name, count in (("q", q), ("k", kv), ("v", kv))
    )
    norms = tuple(Source(norm.format("{}", name), a.head_size) for name in "qk")
    before, after = _LAYER + "input_layernorm.weight", _LAYER + "post_attention_layernorm.weight"
    return (
        PlainVector("attention_norm", a.layers, (Source(before, a.hidden),)),
        PlainVector("mlp_norm", a.layers, (Source(after, a.hidden),)),
        PlainVector("final_norm", 1, (Source(_FINAL_NORM, a.hidden),)),
        PlainVector("bias", a.layers, biases if a.has_bias else (), PANEL),
        PlainVector("head_norms", a.layers, norms if a.has_head_norms else ()),
    )


def parts(architecture: Architecture, quantization: str) -> tuple[Part, ...]:
    """What the file of packed weights holds."""
    found = [Part(v.name, "F32", (v.layers, v.size)) for v in vectors(architecture)]
    for matrix in matrices(architecture, quantization):
        name, layers, small = matrix.name, len(matrix.layers), matrix.bits == 4
        weights, scales = packed_sizes(matrix.channels, matrix.inputs, matrix.bits)
        found.append(Part(f"{name}.weights", "I8", (layers, weights)))
        found.append(Part(f"{name}.scales", "U16" if small else "BF16", (layers, scales)))
        found.append(Part(f"{name}.units", "F32", (layers, matrix.channels if small else 0)))
    return tuple(found)
