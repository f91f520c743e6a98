"""One pass for sequences that get unequal numbers of tokens: a prompt's chunk, and single tokens.

All tokens are one row, so that the weights of every linear layer are read once; attention alone,
and what holds keys and values, know whose they are. transformers' models ask their configuration
which attention to call, and hand it what the pass was told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

Compute = Callable[..., torch.Tensor]
"""`TransformersRunner.compute`."""

_NAME = "shammah_mixed"
_INNER = "sdpa"


@dataclass(frozen=True, slots=True)
class Part:
    """What a pass computes of sequences that get equally many tokens.

    Attributes:
        tokens, positions: (rows, new).
        mask: what they see, (rows, 1, new, length).
        wanted: of how many of the last tokens the logits are wanted.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor | None
    wanted: int


def compute_parts(compute: Compute, cache: Any, parts: Sequence[Part]) -> list[torch.Tensor]:
    """Compute ``parts`` in one pass; the logits of each: (rows, wanted, vocabulary)."""
    if len(parts) == 1:
        (part,) = parts
        options = {"position_ids": part.positions, "attention_mask": part.mask}
        return [compute(part.tokens, cache, max(1, part.wanted), **options)[:, : part.wanted]]
    wanted, begin = [], 0
    for part in parts:
        numbers = torch.arange(begin, begin + part.tokens.numel()).view(part.tokens.shape)
        wanted.append(numbers[:, numbers.shape[1] - part.wanted :].flatten())
        begin += part.tokens.numel()
    device = parts[0].tokens.device
    logits = compute(
        torch.cat([part.tokens.flatten() for part in parts])[None],
        cache,
        torch.cat(wanted).to(device),
        position_ids=torch.cat([part.positions.flatten() for part in parts])[None],
        attention_mask=torch.zeros(1, 1, 1, 1, device=device),  # or transformers makes its own
        parts=parts,
    )
    each = torch.split(logits[0], [len(some) for some in wanted])
    sizes = [(len(part.tokens), part.wanted, logits.shape[2]) for part in parts]
    return [rows.view(size) for rows, size in zip(each, sizes, strict=True)]


def split_row(states: torch.Tensor, shapes: Sequence[torch.Size]) -> list[torch.Tensor]:
    """Return of (1, heads, tokens, size) each part as (rows, heads, new, size)."""
    heads, size = states.shape[1], states.shape[3]
    each = torch.split(states, [shape.numel() for shape in shapes], 2)
    return [
        own.reshape(heads, *shape, size).transpose(0, 1)
        for own, shape in zip(each, shapes, strict=True)
    ]


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: Sequence[torch.Tensor],
    value: Sequence[torch.Tensor],
    attention_mask: torch.Tensor | None,
    parts: Sequence[Part],
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it; ``key`` and ``value``: of each part, as `HeldLayer` gives them."""
    queries = split_row(query, [part.tokens.shape for part in parts])
    found = []
    for part, own, keys, values in zip(parts, queries, key, value, strict=True):
        output, _ = sdpa_attention_forward(module, own, keys, values, part.mask, **options)
        found.append(output.flatten(0, 1))
    return torch.cat(found)[None], None


def can_mix(model: Any) -> bool:
    """Whether a model's attention can be replaced so."""
    return bool(model._supports_attention_backend) and model.config._attn_implementation == _INNER


@contextmanager
def mixing(model: Any) -> Iterator[None]:
    """Have ``model`` take its row of tokens for those of several sequences."""
    AttentionInterface.register(_NAME, _attend)
    model.config._attn_implementation = _NAME
    try:
        yield
    finally:
        model.config._attn_implementation = _INNER
