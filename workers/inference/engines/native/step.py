"""One step of the model: from token ids to logits, for every row at once.

A row is a token at a position of a slot. Decoding has one row for each of up to eight slots,
a chunk of a prompt has a row for each of its tokens; the arithmetic of a row is the same.

The layers of a Llama (https://arxiv.org/abs/2302.13971, section 2.2), as in transformers'
``modeling_llama``, ``modeling_qwen2`` (biases on q, k, v) and ``modeling_qwen3`` (norms on the
heads of q and k):

    x  = x + O attention(rope(Q n(x) + b), rope(K n(x) + b), V n(x) + b)
    x  = x + D (silu(G n(x)) * U n(x))
    n(x) = x / sqrt(mean(x**2) + eps) * weight        (RMSNorm, https://arxiv.org/abs/1910.07467)

Q and K lie in one matrix, G and U in another. All threads run `step`, and share each phase of
it (see `phases`). What an adapter adds to a product is `adaptation`'s.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.adaptation import adapt
from workers.inference.engines.native.attention import attend, exponential
from workers.inference.engines.native.compiler import compiled, compiled_freely, inlined
from workers.inference.engines.native.lanes import (
    float_of_bits,
    half_of_float,
    load_floats,
    no_floats,
    store_floats,
)
from workers.inference.engines.native.layout import GROUP, INT4_GROUP, LANES, PANEL, padded
from workers.inference.engines.native.operands import (
    ADAPTING_PHASES,
    PHASES_OF_A_LAYER,
    Activations,
    Batch,
    Buffers,
    Cache,
    Counters,
    Model,
    Operands,
)
from workers.inference.engines.native.phases import finish_item, next_item, wait_for_all
from workers.inference.engines.native.products import (
    begin_projecting,
    project,
    quantize_group,
)

_Q, _V, _O, _GATE, _DOWN = 0, 2, 3, 4, 6
"""Numbers of `adaptation.TARGETS`."""
_padded = compiled(padded)
_SEGMENT = 8
"""Groups of an item when activations are rounded: 512 numbers, a third of a microsecond."""
_MANY_ROWS = 8
"""So many rows are enough for all threads, and an item is a whole one."""


@compiled
def step(member: int, operands: Operands) -> None:
    """Compute the keys and values of every row, and the logits of those that are wanted.

    All threads of a pool call it, and share the work.
    """
    model, buffers, cache, counters, batch = operands
    rows, adapters = batch.queries.rows, batch.adapters
    layers = model.attention_norm.shape[0]
    narrow, wide = buffers.normed.shape[1], buffers.gate_up.shape[1] // 2
    heads, scratch = buffers.attended.shape[1], buffers.scratch
    hidden, gate_up = buffers.hidden, buffers.gate_up
    _embed(counters, 0, model, batch.tokens, rows, hidden)
    for i in range(layers):
        p = 1 + i * PHASES_OF_A_LAYER
        q = 4 + layers * PHASES_OF_A_LAYER + i * ADAPTING_PHASES
        _normalize(counters, p, hidden, rows, model.attention_norm[i], model.eps, buffers)
        items = begin_projecting(
            member, counters, p + 1, model.qk, i, buffers.narrow, rows, buffers.qk, scratch
        )
        project(member, counters, p + 2, model.v, i, buffers.narrow, rows, buffers.v, scratch)
        wait_for_all(counters, p + 1, items)
        adapt(counters, q, adapters, i, _Q, 2, buffers.normed, narrow, buffers.qk)
        adapt(counters, q + 2, adapters, i, _V, 1, buffers.normed, narrow, buffers.v)
        _rotate(counters, p + 3, i, model, cache, batch, buffers)
        attend(member, counters, p + 4, i, cache, batch.queries, buffers)
        _quantize(counters, p + 5, buffers.attended, rows, buffers.heads, False)
        project(member, counters, p + 6, model.output, i, buffers.heads, rows, hidden, scratch)
        adapt(counters, q + 4, adapters, i, _O, 1, buffers.attended, heads, hidden)
        _normalize(counters, p + 7, hidden, rows, model.mlp_norm[i], model.eps, buffers)
        project(member, counters, p + 8, model.gate_up, i, buffers.narrow, rows, gate_up, scratch)
        adapt(counters, q + 6, adapters, i, _GATE, 2, buffers.normed, narrow, gate_up)
        _quantize(counters, p + 9, gate_up, rows, buffers.wide, True)
        place, inner = model.down_places[i], model.down.weights.shape[0]
        if place < inner:
            project(
                member, counters, p + 10, model.down, place, buffers.wide, rows, hidden, scratch
            )
        else:
            outer, place = model.outer_down, place - inner
            project(member, counters, p + 10, outer, place, buffers.wide, rows, hidden, scratch)
        # silu(gate) * up lies where the gate was.
        adapt(counters, q + 8, adapters, i, _DOWN, 1, gate_up, wide, hidden)
    p = 1 + layers * PHASES_OF_A_LAYER
    outputs = batch.wanted.shape[0]
    _gather(counters, p, batch.wanted, hidden)
    _normalize(counters, p + 1, hidden, outputs, model.final_norm, model.eps, buffers)
    project(
        member, counters, p + 2, model.head, 0, buffers.narrow, outputs, buffers.logits, scratch
    )


@compiled
def _embed(
    counters: Counters,
    phase: int,
    model: Model,
    tokens: NDArray[np.int64],
    rows: int,
    hidden: NDArray[np.float32],
) -> None:
    """A phase: each row begins as its token's row of the embedding."""
    weights, scales = model.embedding.weights[0], model.embedding.scales[0]
    size = model.final_norm.shape[0]
    groups, six = (size + GROUP - 1) // GROUP, model.embedding.bits == 6
    row = next_item(counters, phase)
    while row < rows:
        panel, lane = tokens[row] // PANEL, tokens[row] % PANEL
        for k in range(size):
            block = panel * groups + k // GROUP
            scale = float_of_bits(np.int32(scales[block * PANEL + lane]) << np.int32(16))
            if six:
                small = panel * groups * 2 + k // INT4_GROUP
                hidden[row, k] = _number_of_six_bits(weights, small, lane, k % INT4_GROUP) * scale
            else:
                pair = block * (GROUP // 2) + k % GROUP // 2
                hidden[row, k] = weights[(pair * PANEL + lane) * 2 + k % 2] * scale
        finish_item(counters, phase)
        row = next_item(counters, phase)
    wait_for_all(counters, phase, rows)


@compiled
def _number_of_six_bits(weights: NDArray[np.int8], group: int, lane: int, k: int) -> int:
    """Number ``k`` of a small group of a panel; `layout` says where its bits are."""
    block, pair = k % 16 // 4, k % 4 // 2
    at = (group * 6 * LANES + lane) * 4 + k % 2 * 2 + k // 16
    low = weights[at + block * 4 * LANES] >> (4 * pair) & 15
    upper = weights[at + (4 + block // 2) * 4 * LANES] >> (block % 2 * 4 + pair * 2) & 3
    number: int = low + 16 * upper - 32
    return number


@compiled
def _gather(
    counters: Counters, phase: int, wanted: NDArray[np.int64], hidden: NDArray[np.float32]
) -> None:
    """A phase: the rows that are wanted come first. None is overwritten before it has moved, as
    they rise."""
    if next_item(counters, phase) == 0:
        for i in range(wanted.shape[0]):
            for k in range(hidden.shape[1] if wanted[i] != i else 0):
                hidden[i, k] = hidden[wanted[i], k]
        finish_item(counters, phase)
    wait_for_all(counters, phase, 1)


@compiled_freely
def _normalize(
    counters: Counters,
    phase: int,
    hidden: NDArray[np.float32],
    rows: int,
    weight: NDArray[np.float32],
    eps: float,
    buffers: Buffers,
) -> None:
    """A phase: ``narrow`` is the RMSNorm of the first ``rows`` rows of ``hidden``."""
    size, groups = weight.shape[0], buffers.narrow.steps.shape[1]
    span = _SEGMENT if rows < _MANY_ROWS else groups
    segments = (groups + span - 1) // span
    item = next_item(counters, phase)
    while item < rows * segments:
        row, first = item // segments, item % segments * span
        end = min(groups, first + span)
        x, normed = hidden[row], buffers.normed[row]
        # Of the whole row each time, which is little beside the rounding of a few rows.
        scale = _inverse_root_mean_square(x[:size], eps)
        for k in range(first * GROUP, min(size, end * GROUP)):
            normed[k] = x[k] * scale * weight[k]
        for group in range(first, end):
            quantize_group(buffers.normed, row, group, buffers.narrow)
        finish_item(counters, phase)
        item = next_item(counters, phase)
    wait_for_all(counters, phase, rows * segments)


@compiled_freely
def _inverse_root_mean_square(x: NDArray[np.float32], eps: float) -> np.float32:
    total = np.float32(0)
    for k in range(x.shape[0]):
        total += x[k] * x[k]
    return np.float32(1 / np.sqrt(total / x.shape[0] + eps))


@compiled
def _rotate(
    counters: Counters,
    phase: int,
    layer: int,
    model: Model,
    cache: Cache,
    batch: Batch,
    buffers: Buffers,
) -> None:
    """A phase: from q, k and v to ``queries`` ready for attention, and keys and values kept."""
    rows, kv_heads = batch.queries.rows, cache.keys.shape[2]
    span = 1 if rows < _MANY_ROWS else kv_heads
    parts = kv_heads // span
    item = next_item(counters, phase)
    while item < rows * parts:
        row, first = item // parts, item % parts * span
        for kv_head in range(first, first + span):
            _rotate_group(row, kv_head, layer, model, cache, batch, buffers)
        finish_item(counters, phase)
        item = next_item(counters, phase)
    wait_for_all(counters, phase, rows * parts)


@inlined
def _rotate_group(
    row: int,
    kv_head: int,
    layer: int,
    model: Model,
    cache: Cache,
    batch: Batch,
    buffers: Buffers,
) -> None:
    """A head of keys and values, and those of queries that look at it."""
    heads, size = buffers.queries.shape[1], buffers.queries.shape[2]
    kv_heads = cache.keys.shape[2]
    k_at = _padded(heads * size, PANEL)
    rest_at = _padded(kv_heads * size, PANEL)
    factor, group = np.float32(1 / np.sqrt(size)), heads // kv_heads
    slot, position = batch.queries.slots[row], batch.queries.positions[row]
    qk, v, q = buffers.qk[row], buffers.v[row], buffers.queries[row]
    cosines, sines = batch.cosines[row], batch.sines[row]
    for head in range(kv_head * group, (kv_head + 1) * group):
        at = head * size
        x = qk[at : at + size]
        if model.bias.shape[1]:
            for d in range(size):
                x[d] += model.bias[layer, at + d]
        if model.head_norms.shape[1]:
            _normalize_head(x, model.head_norms[layer, 0], model.eps)
        _rotate_head(x, cosines, sines)
        for d in range(size):
            q[head, d] = x[d] * factor
    at = kv_head * size
    x = qk[k_at + at : k_at + at + size]
    if model.bias.shape[1]:
        for d in range(size):
            x[d] += model.bias[layer, k_at + at + d]
            v[at + d] += model.bias[layer, qk.shape[0] + at + d]
    if v.shape[0] > rest_at:
        for d in range(size):
            v[at + d] += v[rest_at + at + d]
    if model.head_norms.shape[1]:
        _normalize_head(x, model.head_norms[layer, 1], model.eps)
    _rotate_head(x, cosines, sines)
    keys, values = cache.keys[slot, layer, kv_head], cache.values[slot, layer, kv_head]
    _keep(keys, values, position, x, v[at : at + size])


@compiled
def _keep(
    keys: NDArray[np.uint16],
    values: NDArray[np.uint16],
    position: int,
    key: NDArray[np.float32],
    value: NDArray[np.float32],
) -> None:
    block, place = position // LANES, position % LANES
    for d in range(key.shape[0]):
        keys[block, d, place] = half_of_float(key[d])
        values[d // LANES, position, d % LANES] = half_of_float(value[d])


@compiled_freely
def _normalize_head(x: NDArray[np.float32], weight: NDArray[np.float32], eps: float) -> None:
    scale = _inverse_root_mean_square(x, eps)
    for k in range(x.shape[0]):
        x[k] = x[k] * scale * weight[k]


@compiled_freely
def _rotate_head(
    x: NDArray[np.float32], cosines: NDArray[np.float32], sines: NDArray[np.float32]
) -> None:
    """Rotary embedding (https://arxiv.org/abs/2104.09864): number k turns with number k + half."""
    half = x.shape[0] // 2
    for k in range(half):
        a, b = x[k], x[k + half]
        x[k] = a * cosines[k] - b * sines[k]
        x[k + half] = b * cosines[k] + a * sines[k]


@compiled
def _quantize(
    counters: Counters,
    phase: int,
    x: NDArray[np.float32],
    rows: int,
    into: Activations,
    activates: bool,
) -> None:
    """A phase: round the rows of ``x`` to 16 bits; of gate and up, silu(gate) * up.

    silu(x) = x / (1 + exp(-x))
    """
    groups, one = into.steps.shape[1], np.float32(1)
    segments = (groups + _SEGMENT - 1) // _SEGMENT
    item = next_item(counters, phase)
    while item < rows * segments:
        row, segment = item // segments, item % segments
        first, end = segment * _SEGMENT, min(groups, (segment + 1) * _SEGMENT)
        if activates:
            at = row * x.shape[1]
            for k in range(at + first * GROUP, at + end * GROUP, LANES):
                gate, up = load_floats(x, k), load_floats(x, k + groups * GROUP)
                store_floats(x, k, gate * up / (exponential(no_floats() - gate) + one))
        for group in range(first, end):
            quantize_group(x, row, group, into)
        finish_item(counters, phase)
        item = next_item(counters, phase)
    wait_for_all(counters, phase, rows * segments)
