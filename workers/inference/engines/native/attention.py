"""Attention over the cache of keys and values, four queries at a time.

A query q at position p, with the keys and values of its own sequence up to p:

    s[j] = q . k[j]    (j <= p; q is already divided by the root of its length)
    out  = sum of exp(s[j] - max s) v[j]  /  sum of exp(s[j] - max s)

The cache is passed through in chunks of 256 positions that begin at multiples of 256; what the
chunks give is joined as they come (the online softmax of Milakov and Gimelshein, 2018,
https://arxiv.org/abs/1805.02867). The chunks depend on the positions alone, so a query gets
the same bits whichever other queries are computed with it.

The cache holds float16. Keys lie in blocks of sixteen positions, values in blocks of sixteen
numbers, each so that what is read together lies together:

    keys     (slots, layers, heads, position // 16, number, position % 16)
    values   (slots, layers, heads, number // 16, position, number % 16)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workers.inference.engines.native.compiler import compiled
from workers.inference.engines.native.lanes import (
    Vector,
    add_product,
    first_of,
    larger,
    largest_of,
    load_floats,
    load_halves,
    no_floats,
    no_floats_of,
    place,
    power_of_two,
    rounded,
    smaller,
    spread,
    store_floats,
    sum_of,
)
from workers.inference.engines.native.layout import LANES
from workers.inference.engines.native.operands import (
    CHUNK,
    TILE,
    Buffers,
    Cache,
    Counters,
    Queries,
    Scratch,
)
from workers.inference.engines.native.phases import finish_item, next_item, wait_for_all

_TILE = tuple(range(TILE))
_LIMIT = np.float32(87)
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOWEST_SCORE = np.float32(-1e30)


@compiled
def exponential(x: Vector) -> Vector:
    """exp(x), within 2 units in the last place, for x from -87 to 87; beyond, as for these.

    Cephes' ``expf`` (Moshier, https://www.netlib.org/cephes/): exp(x) = 2**n exp(r), where r is
    within half a ln 2.
    """
    x = smaller(larger(x, spread(-_LIMIT)), spread(_LIMIT))
    n = rounded(x * _LOG2_E)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = r * np.float32(1.9875691500e-4) + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    return (p * r * r + r + np.float32(1)) * power_of_two(n)


@compiled
def attend(
    member: int,
    counters: Counters,
    phase: int,
    layer: int,
    cache: Cache,
    queries: Queries,
    buffers: Buffers,
) -> None:
    """A phase: each row of ``attended`` is the attention of its heads, one after the other."""
    heads, scratch, out = buffers.queries, buffers.scratch, buffers.attended
    kv_heads, size = cache.keys.shape[2], heads.shape[2]
    group = heads.shape[1] // kv_heads
    items = 0
    for i in range(queries.begins.shape[0] - 1):
        items += kv_heads * _tiles(queries, i, group)
    span, before, tiles = 0, 0, _tiles(queries, 0, group)  # those of earlier spans; of this one
    item = next_item(counters, phase)
    while item < items:
        while item >= before + kv_heads * tiles:
            span, before = span + 1, before + kv_heads * tiles
            tiles = _tiles(queries, span, group)
        tile, kv_head = (item - before) % tiles, (item - before) // tiles
        first, end = queries.begins[span], queries.begins[span + 1]
        for t in range(TILE):
            query = min(tile * TILE + t, (end - first) * group - 1)
            row, head = first + query // group, kv_head * group + query % group
            scratch.places[member, t] = (row * heads.shape[1] + head) * size
            scratch.ends[member, t] = queries.positions[row] + 1
        slot = queries.slots[first]
        keys, values = cache.keys[slot, layer, kv_head], cache.values[slot, layer, kv_head]
        _attend_tile(member, keys, values, heads, scratch)
        for t in range(TILE):
            place = scratch.places[member, t]
            row, column = place // (heads.shape[1] * size), place % (heads.shape[1] * size)
            for d in range(size):
                out[row, column + d] = scratch.mixed[member, t, d] / scratch.sums[member, t]
        finish_item(counters, phase)
        item = next_item(counters, phase)
    wait_for_all(counters, phase, items)


@compiled
def _tiles(queries: Queries, span: int, group: int) -> int:
    """Of one head of keys and values."""
    rows: int = queries.begins[span + 1] - queries.begins[span]
    return (rows * group + TILE - 1) // TILE


@compiled
def _attend_tile(
    member: int,
    keys: NDArray[np.uint16],
    values: NDArray[np.uint16],
    heads: NDArray[np.float32],
    scratch: Scratch,
) -> None:
    """``mixed / sums`` is the attention of the four queries at ``places``."""
    places, weights, mixed = scratch.places[member], scratch.weights[member], scratch.mixed[member]
    for t in range(TILE):
        scratch.highest[member, t], scratch.sums[member, t] = _LOWEST_SCORE, np.float32(0)
        for d in range(mixed.shape[1]):
            mixed[t, d] = 0
    end = scratch.ends[member, TILE - 1]
    for start in range(0, end, CHUNK):
        count = min(CHUNK, end - start)
        _scores(keys, start // LANES, count, heads, places, weights)
        for t in range(TILE):
            seen = max(0, min(count, scratch.ends[member, t] - start))
            _weigh(member, t, seen, count, scratch)
        _mix(values, start, count, weights, mixed)


@compiled
def _weigh(member: int, t: int, seen: int, count: int, scratch: Scratch) -> None:
    """Make weights of the scores that a query sees, and zeros of the others."""
    at = (member * TILE + t) * CHUNK
    scores, mixed = scratch.weights[member, t], scratch.mixed[member, t]
    whole = (seen + LANES - 1) // LANES * LANES
    for j in range(seen, whole):
        scores[j] = _LOWEST_SCORE
    before = scratch.highest[member, t]
    highest = spread(before)
    for j in range(0, whole, LANES):
        highest = larger(highest, load_floats(scratch.weights, at + j))
    after = largest_of(highest)
    total = no_floats()
    for j in range(0, whole, LANES):
        weights = exponential(load_floats(scratch.weights, at + j) - after)
        store_floats(scratch.weights, at + j, weights)
        total = total + weights
    for j in range(seen, count):
        scores[j] = 0
    shrink = first_of(exponential(spread(before - after)))
    scratch.highest[member, t] = after
    scratch.sums[member, t] = scratch.sums[member, t] * shrink + sum_of(total)
    for d in range(mixed.shape[0]):
        mixed[d] *= shrink


@compiled
def _scores(
    keys: NDArray[np.uint16],
    block: int,
    count: int,
    heads: NDArray[np.float32],
    places: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> None:
    """``scores[t, j] = query t . key (block * LANES + j)`` for j < count, rounded up to LANES."""
    size = keys.shape[1]
    queries = (places[0], places[1], places[2], places[3])
    at = block * size * LANES
    for j in range(0, count, LANES):
        found = no_floats_of(queries)
        for d in range(size):
            found = add_product(found, heads, place(queries, 1, d), load_halves(keys, at))
            at += LANES
        store_floats(scores, place(_TILE, CHUNK, j), found)


@compiled
def _mix(
    values: NDArray[np.uint16],
    start: int,
    count: int,
    weights: NDArray[np.float32],
    mixed: NDArray[np.float32],
) -> None:
    """``mixed[t] += weights[t, j] * value (start + j)`` for every j < count."""
    size = mixed.shape[1]
    for d in range(0, size, LANES):
        total = load_floats(mixed, place(_TILE, size, d))
        at = d * values.shape[1] + start * LANES
        for j in range(count):
            total = add_product(total, weights, place(_TILE, CHUNK, j), load_halves(values, at))
            at += LANES
        store_floats(mixed, place(_TILE, size, d), total)
