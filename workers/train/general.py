"""General questions: what the base model answers them, and which of that an adapter keeps.

``data/gate.txt`` holds the questions that judge an adapter, some with the word that a right answer
must have (behind a tab; others that will do behind ``|``), ``data/mixed.txt`` those that are mixed
into its training; no question is in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

import torch

from workers.train.encoding import ChatEncoder, EncodedExample
from workers.train.loss import make_micro_batch, target_logits
from workers.train.schedule import fill_micro_batches

MOST_TOKENS = 16
"""Of an answer: by then it has said what was asked for, or is on its way somewhere else."""

SURE = math.log(0.5)
"""From this log probability on a choice of the base model is sure. Of others, a different one is
often as good, and rounding alone changes them."""

_BATCH = 32
"""Questions answered at once."""

_TOKENS = 4096
"""Of their prompts, padding counted in: so many are computed at once, or one alone."""


def gate_questions() -> tuple[str, ...]:
    """The questions that judge; nothing is ever trained on them."""
    return tuple(line.partition("\t")[0] for line in _read("gate.txt"))


def gate_facts() -> dict[str, tuple[str, ...]]:
    """Of those with a short right answer: the words of which it must have one."""
    rows = (line.partition("\t") for line in _read("gate.txt"))
    return {question: tuple(words.split("|")) for question, _, words in rows if words}


def mixed_questions() -> tuple[str, ...]:
    """The questions whose answers a training holds on to."""
    return _read("mixed.txt")


def _read(name: str) -> tuple[str, ...]:
    text = resources.files("workers.train").joinpath("data", name).read_text("utf-8")
    return tuple(line for line in text.split("\n") if line)


def answer(
    model: Any,
    encoder: ChatEncoder,
    questions: Sequence[str],
    each: Callable[[int], object] = lambda count: None,
) -> list[EncodedExample]:
    """What ``model`` answers, always the likeliest token, `MOST_TOKENS` at most.

    Args:
        each: called after every token of a batch, with the number of questions answered.
    """
    prompts = [encoder.encode_prompt((("user", question),)) for question in questions]
    return answer_prompts(model, encoder, prompts, each)


def answer_prompts(
    model: Any,
    encoder: ChatEncoder,
    prompts: Sequence[tuple[int, ...]],
    each: Callable[[int], object] = lambda count: None,
    most: int = MOST_TOKENS,
) -> list[EncodedExample]:
    """The same for prompts that are tokens already, with ``most`` tokens at most."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    found: dict[int, EncodedExample] = {}
    while len(found) < len(order):
        waiting = order[len(found) :][:_BATCH]
        fitting = [one for n, one in enumerate(waiting, 1) if n * len(prompts[one]) <= _TOKENS]
        places = fitting or waiting[:1]
        chosen = _decode(
            model, [prompts[one] for one in places], encoder.ends, most, partial(each, len(found))
        )
        for place, ids in zip(places, chosen, strict=True):
            prompt = prompts[place]
            found[place] = EncodedExample((*prompt, *ids), len(prompt), 1.0)
    return [found[place] for place in range(len(prompts))]


@torch.no_grad()
def _decode(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    ends: frozenset[int],
    most: int,
    each: Callable[[], object],
) -> list[list[int]]:
    """The tokens of each answer, with the one that ends it.

    The last place is named by a tensor: a number would take a view, whose rows do not lie behind
    each other, and for such a batch torch copies the output layer's weights once for every row
    (57 MB each of the starter's in 16 bits: 1.8 GB and seconds for 32 questions).
    """
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    padding = [longest - len(one) for one in prompts]
    rows = zip(prompts, padding, strict=True)
    ids = torch.tensor([[0] * pad + list(one) for one, pad in rows], device=device)
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    answers: list[list[int]] = [[] for _ in prompts]
    cache = None
    for _ in range(most):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.tensor([ids.shape[1] - 1], device=device),
        )
        cache = out.past_key_values
        ids = out.logits[:, -1].argmax(-1, keepdim=True)
        for row, token in zip(answers, ids[:, 0].tolist(), strict=True):
            if not row or row[-1] not in ends:
                row.append(token)
        if all(row[-1] in ends for row in answers):
            break
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], -1)
        positions = positions[:, -1:] + 1
        each()
    return answers


@dataclass(frozen=True, slots=True)
class Choices:
    """A model compared with an answer that it is given token by token: ``same``, whether each token
    is its own first choice; ``logs``, the log probabilities."""

    same: tuple[bool, ...]
    logs: tuple[float, ...]


def choices(
    model: Any,
    answers: Sequence[EncodedExample],
    micro_tokens: int,
    each: Callable[[int], object] = lambda count: None,
) -> list[Choices]:
    """What ``model`` would choose where the answers were given.

    Args:
        each: called after every micro-batch, with the number of answers looked at.
    """
    device = str(next(model.parameters()).device)
    found: list[Choices] = []
    for group in fill_micro_batches([len(one.ids) for one in answers], micro_tokens):
        batch = make_micro_batch([answers[place] for place in group], device)
        with torch.no_grad():
            logits = target_logits(model, batch)
            same = (logits.argmax(-1) == batch.targets).tolist()
            chosen = logits.gather(-1, batch.targets[:, None])[:, 0]
            logs = (chosen - torch.logsumexp(logits, -1)).tolist()
        at = 0
        for place in group:
            end = at + answers[place].targets
            found.append(Choices(tuple(same[at:end]), tuple(logs[at:end])))
            at = end
        each(len(found))
    return found
