#!/usr/bin/env python3
"""What rounding the weights costs in quality: ours, and llama.cpp's formats in emulation.

    nice .venv/bin/python scripts/bench/roundings.py            the starter, turned
    nice .venv/bin/python scripts/bench/roundings.py --plain    as it is
    nice .venv/bin/python scripts/bench/roundings.py --parts    where 8 bits lose first choices
    nice .venv/bin/python scripts/bench/roundings.py --compensated   errors that make up for others

The starter's weights come from a Q4_1 file: groups of 32 with 16 values each, which any format of
that kind meets exactly. So its basis is changed first: the norms' weights go into the matrices
that follow them, and the residual stream is turned by a random orthogonal matrix. What the model
computes stays the same; its weights lie on no grid any more.

Each format rounds the weights, and transformers computes with them in float32, over text of this
repository: mean Kullback-Leibler divergence from the exact model in nats, equal first choices,
perplexity beside the exact one. Emulated after ggml-quants.c: q8_0, q4_0, q4_1 in groups of 32
with float16 scales; q4_K with scales and minima of 6 bits for groups of 32 in blocks of 256,
searched as make_qkx2_quants does; q6_K in groups of 16. Q4_K_M has q6_K for head and embedding,
for v, and for down in half of the layers; the others have q6_K for the head. llama.cpp rounds
activations to 8 bits as well, in groups of 32 (256 for K): so is done here. Blocks that a row
does not fill are padded, where llama.cpp takes other formats.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the worker

import numba
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from shammah.models.catalogue import starter_directory
from shammah.settings.load import home_directory
from workers.inference.engines.native.architecture import read_architecture
from workers.inference.packages.checkpoint import inspect_checkpoint

ROOT = Path(__file__).resolve().parents[2]

Floats = NDArray[np.float32]
Rounding = Callable[[Floats], Floats]

TEXTS = (("LICENSE", 100), ("docs/ARCHITECTURE.md", 0), ("docs/BOOTSTRAP.md", 0))
TOKENS = 350

OTHER_TEXTS = (
    ("README.md", 0),
    ("README.md", 1000),
    ("docs/ROUTING.md", 0),
    ("docs/ROUTING.md", 700),
)
DAMPING = 0.01
"""Of the mean of the moments' diagonal, added to it: GPTQ's own."""


# --- llama.cpp's formats ------------------------------------------------------------------


def in_groups(matrix: Floats, size: int) -> Floats:
    rows, columns = matrix.shape
    padded = np.zeros((rows, -(-columns // size) * size), np.float32)
    padded[:, :columns] = matrix
    return padded.reshape(rows, -1, size)


def ungrouped(groups: Floats, matrix: Floats) -> Floats:
    return groups.reshape(len(groups), -1)[:, : matrix.shape[1]]


def quotient(a: Floats, b: Floats) -> Floats:
    shape = np.broadcast_shapes(a.shape, b.shape)
    return np.divide(a, b, out=np.zeros(shape, np.float32), where=b != 0)


def half(numbers: Floats) -> Floats:
    return numbers.astype(np.float16).astype(np.float32)


def of_largest(groups: Floats) -> Floats:
    """The number of each group that is largest without its sign."""
    return np.take_along_axis(groups, abs(groups).argmax(-1)[..., None], -1)


def q8_0(matrix: Floats) -> Floats:
    groups = in_groups(matrix, 32)
    scale = abs(groups).max(-1, keepdims=True) / 127
    return ungrouped(np.rint(quotient(groups, scale)) * half(scale), matrix)


def q4_0(matrix: Floats) -> Floats:
    groups = in_groups(matrix, 32)
    scale = of_largest(groups) / -8
    numbers = np.clip(np.floor(quotient(groups, scale) + 8.5), 0, 15) - 8
    return ungrouped(numbers * half(scale), matrix)


def q4_1(matrix: Floats) -> Floats:
    groups = in_groups(matrix, 32)
    low = groups.min(-1, keepdims=True)
    scale = (groups.max(-1, keepdims=True) - low) / 15
    numbers = np.clip(np.floor(quotient(groups - low, scale) + 0.5), 0, 15)
    return ungrouped(numbers * half(scale) + half(low), matrix)


@numba.njit
def _search(groups: Any, weights: Any, scales: Any, minima: Any) -> None:
    for g in range(groups.shape[0]):
        x, w = groups[g], weights[g]
        low, high = min(x.min(), np.float32(0)), x.max()
        minima[g], best = low, np.float32(np.inf)
        for step in range(22 if high > low else 0):
            factor = 15 / (high - low) if step == 0 else (13.9 + 0.1 * step) / (high - low)
            q = np.minimum(np.maximum(np.rint(factor * (x - low)), 0), 15)
            s1, s2, sq = w.sum(), (w * x).sum(), (w * q).sum()
            sqq, sqx = (w * q * q).sum(), (w * q * x).sum()
            both = s1 * sqq - sq * sq
            if both <= 0:
                continue
            scale, minimum = (s1 * sqx - s2 * sq) / both, (sqq * s2 - sq * sqx) / both
            if minimum > 0:
                scale, minimum = sqx / sqq, 0.0
            error = (w * (scale * q + minimum - x) ** 2).sum()
            if error < best:
                best, scales[g], minima[g] = error, scale, minimum


def q4_k(matrix: Floats) -> Floats:
    groups = in_groups(matrix, 32)
    weights = np.sqrt((groups**2).mean(-1, keepdims=True)) + abs(groups)
    found = np.zeros((2, groups.shape[0] * groups.shape[1]), np.float32)
    _search(groups.reshape(-1, 32), weights.reshape(-1, 32), *found)
    scale, below = (six_bits(a.reshape(groups.shape[:2])) for a in (found[0], -found[1]))
    numbers = np.clip(np.rint(quotient(groups + below, scale)), 0, 15)
    return ungrouped(numbers * scale - below, matrix)


def six_bits(numbers: Floats) -> Floats:
    """Those of a block of eight groups in 63 steps."""
    blocks = in_groups(numbers, 8)
    step = blocks.max(-1, keepdims=True) / 63
    return ungrouped(np.rint(quotient(blocks, step)) * half(step), numbers)[..., None]


def q6_k(matrix: Floats) -> Floats:
    groups = in_groups(matrix, 16)
    largest, best, scale = of_largest(groups), np.inf, None
    for extra in range(-9, 10):
        numbers = np.clip(
            np.rint(groups * quotient(-(32 + 0.1 * extra) + 0 * largest, largest)), -32, 31
        )
        w = groups**2
        tried = quotient((w * numbers * groups).sum(-1), (w * numbers**2).sum(-1))[..., None]
        error = (w * (tried * numbers - groups) ** 2).sum(-1, keepdims=True)
        scale = tried if scale is None else np.where(error < best, tried, scale)
        best = np.minimum(error, best)
    assert scale is not None
    blocks = in_groups(scale[..., 0], 16)
    step = half(abs(blocks).max(-1, keepdims=True) / 127)
    rounded = ungrouped(np.rint(quotient(blocks, step)) * step, scale[..., 0])[..., None]
    return ungrouped(np.clip(np.rint(quotient(groups, rounded)), -32, 31) * rounded, matrix)


def of_llama(name: str, layers: int) -> Callable[[str], Rounding]:
    """Which format llama.cpp takes for a tensor."""

    def choose(tensor: str) -> Rounding:
        if name == "Q8_0":
            return q8_0
        if "embed" in tensor or "lm_head" in tensor:
            return q6_k
        if name == "Q4_K_M":
            layer = int(tensor.split(".")[2])
            eighth = layers // 8
            inner = eighth <= layer < 7 * layers // 8 and (layer - eighth) % 3 != 2
            wide = "v_proj" in tensor or ("down_proj" in tensor and not inner)
            return q6_k if wide else q4_k
        return {"Q4_0": q4_0, "Q4_1": q4_1}[name]

    return choose


def round_activations(size: int) -> Callable[..., Any]:
    def hook(module: Any, arguments: Any) -> Any:
        rows = arguments[0].reshape(-1, arguments[0].shape[-1]).numpy()
        groups = in_groups(rows, size)
        scale = abs(groups).max(-1, keepdims=True) / 127
        rounded = ungrouped(np.rint(quotient(groups, scale)) * scale, rows)
        return (torch.from_numpy(rounded.copy()).reshape(arguments[0].shape),)

    return hook


# --- ours ---------------------------------------------------------------------------------


def of_ours(quantization: str, architecture: Any) -> dict[str, Rounding]:
    """How each tensor is rounded."""
    from tests.fakes.int4_weights import unpack_int4, unpack_int6
    from workers.inference.engines.native.int4_packing import pack_int4
    from workers.inference.engines.native.int6_packing import pack_int6
    from workers.inference.engines.native.kernels import kernel_directory, prepare_kernels
    from workers.inference.engines.native.packing import pack, unpack
    from workers.inference.engines.native.packing_plan import matrices

    code = prepare_kernels(kernel_directory(home_directory(os.environ)))

    def eight(matrix: Floats) -> Floats:
        return unpack(*pack(matrix, code), *matrix.shape)

    def twice(matrix: Floats) -> Floats:
        return eight(matrix) + eight(matrix - eight(matrix))

    def four(matrix: Floats) -> Floats:
        return unpack_int4(*pack_int4(matrix, code), *matrix.shape)

    def six(matrix: Floats) -> Floats:
        return unpack_int6(*pack_int6(matrix), *matrix.shape)

    found: dict[str, Rounding] = {}
    for matrix in matrices(architecture, quantization):
        for layer in matrix.layers:
            for source in matrix.sources:
                kind = twice if source.remainder else {8: eight, 6: six, 4: four}[matrix.bits]
                found[source.name.format(layer)] = kind
    return found


PARTS = (("embed", "lm_head"), ("q_proj", "k_proj"), ("o_proj",), ("gate", "up_proj"), ("down",))


def of_parts(ours: dict[str, Rounding]) -> dict[str, Callable[[str], Rounding]]:
    """Our 8 bits with a part of the model left exact, other groups, and more bits."""

    def without(part: tuple[str, ...]) -> Callable[[str], Rounding]:
        return lambda tensor: _as_it_is if any(p in tensor for p in part) else ours[tensor]

    def to(bits: int, size: int) -> Callable[[str], Rounding]:
        return lambda tensor: lambda matrix: _to_bits(matrix, bits, size)

    forms = {f"without {' '.join(part)}": without(part) for part in PARTS}
    forms |= {f"8 bits by {size}": to(8, size) for size in (64, 32, 16)}
    return forms | {f"{bits} bits by 64": to(bits, 64) for bits in (9, 10, 11)}


def _as_it_is(matrix: Floats) -> Floats:
    return matrix


def _to_bits(matrix: Floats, bits: int, size: int) -> Floats:
    groups = in_groups(matrix, size)
    scale = abs(groups).max(-1, keepdims=True) / (2 ** (bits - 1) - 1)
    return ungrouped(np.rint(quotient(groups, scale)) * scale, matrix)


# --- errors that make up for each other ---------------------------------------------------


def moments(model: Any) -> dict[str, Any]:
    """The sum of x x^T over the inputs x of each linear layer, for a text that is not judged."""
    found: dict[str, Any] = {}

    def add(name: str) -> Callable[..., None]:
        def hook(module: Any, arguments: Any) -> None:
            x = arguments[0].reshape(-1, arguments[0].shape[-1]).double()
            found[name] = found.get(name, 0) + x.T @ x

        return hook

    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    hooks = [m.register_forward_pre_hook(add(f"{n}.weight")) for n, m in linears.items()]
    log_probabilities(model, texts(OTHER_TEXTS))
    for hook in hooks:
        hook.remove()
    return found


def compensated(matrix: Floats, moments: Any, bits: int, size: int, block: int) -> Floats:
    """Round column by column; the columns that follow make up for what each has lost.

    As GPTQ does (Frantar et al., 2022), within blocks of columns, with scales that are taken
    when their group is reached; 4 bits with a zero point.
    """
    left, done = torch.from_numpy(matrix.copy()), torch.zeros(matrix.shape)
    for first in range(0, matrix.shape[1], block):
        end = min(first + block, matrix.shape[1])
        own = moments[first:end, first:end].clone()
        own += torch.eye(end - first, dtype=torch.float64) * (DAMPING * own.diag().mean())
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(own))
        upper = torch.linalg.cholesky(inverse, upper=True)
        upper = (upper / upper.diag()[:, None]).float()
        for at in range(first, end, size):
            to = min(at + size, end)
            group, lost = left[:, at:to].T.contiguous(), torch.zeros(to - at, len(left))
            largest = group.abs().max(0).values.clamp(min=1e-12)
            low = group.min(0).values.clamp(max=0) if bits == 4 else -largest
            high = group.max(0).values.clamp(min=0) if bits == 4 else largest
            steps = 2**bits - (1 if bits == 4 else 2)
            scale = ((high - low) / steps).clamp(min=1e-12)
            zero = torch.round(-low / scale)
            for k in range(to - at):
                number = (torch.round(group[k] / scale) + zero).clamp(0, steps)
                done[:, at + k] = (number - zero) * scale
                lost[k] = group[k] - done[:, at + k]
                row = upper[at - first + k]
                group[k + 1 :] -= row[at - first + k + 1 : to - first, None] * lost[k]
            left[:, to:end] -= lost.T @ upper[at - first : to - first, to - first :]
    found: Floats = done.numpy()
    return found


def of_compensation(model: Any) -> dict[str, Callable[[str], Rounding]]:
    """8 bits, with each by itself and with errors that make up for each other; 4 bits, too.

    The embedding is never compensated: it is looked up by row, and one that was rounded for its
    products as a head is no embedding any more. v is left exact, since it has 16 bits in ours.
    """
    known = moments(model)

    def to(bits: int, size: int, block: int) -> Callable[[str], Rounding]:
        def choose(tensor: str) -> Rounding:
            if "v_proj" in tensor:
                return _as_it_is
            own = 8 if "lm_head" in tensor else bits
            if "embed" in tensor or not block:
                plain = q4_1 if own == 4 and "embed" not in tensor else None
                return plain or (lambda matrix: _to_bits(matrix, 8, 64))
            return lambda matrix: compensated(matrix, known[tensor], own, size, block)

        return choose

    return {
        "8 bits, each by itself": to(8, 64, 0),
        "8 bits, blocks of 256": to(8, 64, 256),
        "8 bits, all columns": to(8, 64, 1 << 20),
        "4 bits, each by itself": to(4, 32, 0),
        "4 bits, blocks of 256": to(4, 32, 256),
        "4 bits, all columns": to(4, 32, 1 << 20),
    }


# --- the model ----------------------------------------------------------------------------


def load(turned: bool) -> Any:
    """The starter with a head of its own, turned by a random orthogonal matrix if it shall be."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        starter_directory(), dtype=torch.float32
    )
    hidden = model.config.hidden_size
    random = torch.Generator().manual_seed(1)
    normal = torch.randn(hidden, hidden, generator=random, dtype=torch.float64)
    turn = torch.linalg.qr(normal)[0] if turned else torch.eye(hidden, dtype=torch.float64)
    with torch.no_grad():
        model.lm_head = torch.nn.Linear(hidden, model.config.vocab_size, bias=False)
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
        if not turned:
            return model.eval()
        after = [(model.model.norm, [model.lm_head])]
        for layer in model.model.layers:
            own, mlp = layer.self_attn, layer.mlp
            after.append((layer.input_layernorm, [own.q_proj, own.k_proj, own.v_proj]))
            after.append((layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]))
            for linear in (own.o_proj, mlp.down_proj):
                linear.weight.copy_(turn.T @ linear.weight.double())
        for norm, linears in after:
            for linear in linears:
                linear.weight.copy_(linear.weight.double() * norm.weight.double() @ turn)
            norm.weight.fill_(1)
        embedding = model.model.embed_tokens.weight
        embedding.copy_(embedding.double() @ turn)
    return model.eval()


def texts(parts: tuple[tuple[str, int], ...] = TEXTS) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(starter_directory() / "tokenizer.json"))
    every = []
    for name, first in parts:
        ids = tokenizer.encode((ROOT / name).read_text(), add_special_tokens=False).ids
        every.append(ids[first : first + TOKENS])
    return every


def log_probabilities(model: Any, sequences: list[list[int]]) -> Any:
    with torch.inference_mode():
        logits = [model(torch.tensor([tokens])).logits[0].double() for tokens in sequences]
    return torch.cat([rows.log_softmax(-1) for rows in logits])


def perplexity(probabilities: Any, sequences: list[list[int]]) -> float:
    rows, following = [], []
    for number, tokens in enumerate(sequences):
        rows += [number * TOKENS + k for k in range(len(tokens) - 1)]
        following += tokens[1:]
    return float(torch.exp(-probabilities[rows, following].mean()))


def lead(base: Any, found: Any) -> float:
    """The median of how far the exact model's first choice is before its second, in probability,
    where another became the first."""
    changed = base.argmax(-1) != found.argmax(-1)
    if not changed.any():
        return 0.0
    first, second = base[changed].exp().topk(2).values.unbind(-1)
    return float((first - second).median())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plain", action="store_true", help="the starter as it is")
    parser.add_argument("--parts", action="store_true", help="where 8 bits lose first choices")
    parser.add_argument(
        "--compensated", action="store_true", help="if errors made up for each other"
    )
    options = parser.parse_args()
    architecture = read_architecture(inspect_checkpoint(starter_directory()))
    model, sequences = load(not options.plain), texts()
    exact = {name: p.detach().clone() for name, p in model.named_parameters() if p.ndim == 2}
    base = log_probabilities(model, sequences)
    usual = perplexity(base, sequences)
    print(f"{sum(map(len, sequences))} tokens, perplexity {usual:.2f}")
    forms: dict[str, tuple[Any, int]] = {}
    for name in ("int8", "int4"):
        ours = of_ours(name, architecture)
        ours.setdefault("lm_head.weight", ours["model.embed_tokens.weight"])
        forms[f"ours {name}"] = ours.__getitem__, 0
    for name in ("Q8_0", "Q4_0", "Q4_1", "Q4_K_M"):
        forms[name] = of_llama(name, architecture.layers), 256 if "K" in name else 32
    if options.parts:
        eight = of_ours("int8", architecture)
        eight.setdefault("lm_head.weight", eight["model.embed_tokens.weight"])
        forms = {"ours int8": (eight.__getitem__, 0)}
        forms |= {name: (rounding, 0) for name, rounding in of_parts(eight).items()}
    if options.compensated:
        forms = {name: (rounding, 0) for name, rounding in of_compensation(model).items()}
    for name, (rounding, size) in forms.items():
        with torch.no_grad():
            for tensor, weights in exact.items():
                rounded = rounding(tensor)(weights.numpy())
                model.get_parameter(tensor).copy_(torch.from_numpy(rounded.copy()))
        linears = [m for m in model.modules() if size and isinstance(m, torch.nn.Linear)]
        hooks = [m.register_forward_pre_hook(round_activations(size)) for m in linears]
        found = log_probabilities(model, sequences)
        for hook in hooks:
            hook.remove()
        divergence = float((base.exp() * (base - found)).sum(-1).mean())
        same = float((base.argmax(-1) == found.argmax(-1)).double().mean())
        more = perplexity(found, sequences) / usual - 1
        print(
            f"{name:24} KL {divergence:.5f}  same first choice {same:.1%}  perplexity {more:+.1%}"
            f"  lead of the first where it changed {lead(base, found):.3f}"
        )


if __name__ == "__main__":
    main()
