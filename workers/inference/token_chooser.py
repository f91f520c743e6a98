"""Chooses the next token of one sequence from the model's logits, as transformers does."""

from __future__ import annotations

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from workers.inference.sampling import SamplingPlan


class TokenChooser:
    """One per sequence: its random numbers depend on nothing but its seed."""

    def __init__(self, plan: SamplingPlan, prompt: tuple[int, ...], device: str) -> None:
        self._greedy = plan.temperature == 0
        self._processors = _processors(plan)
        self._seen = torch.tensor([prompt], device=device)  # (1, tokens so far)
        self._keeps_seen = plan.repetition_penalty != 1.0
        self._random = torch.Generator(device)
        if plan.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(plan.seed)

    def choose(self, logits: torch.Tensor) -> int:
        """The next token, from logits of shape (1, vocabulary)."""
        scores = self._processors(self._seen, logits.float())  # type: ignore[arg-type]
        if self._greedy:
            token = torch.argmax(scores, dim=-1, keepdim=True)
        else:
            probabilities = torch.softmax(scores, dim=-1)
            token = torch.multinomial(probabilities, 1, generator=self._random)
        if self._keeps_seen:
            self._seen = torch.cat([self._seen, token], dim=-1)
        return int(token)


def _processors(plan: SamplingPlan) -> LogitsProcessorList:
    """In the order of ``generate``: the filters see scores that the temperature has scaled."""
    processors = LogitsProcessorList()
    if plan.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(plan.repetition_penalty))
    if plan.temperature == 0:
        return processors
    if plan.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(plan.temperature))
    if plan.top_k > 0:
        processors.append(TopKLogitsWarper(plan.top_k))
    if plan.top_p < 1.0:
        processors.append(TopPLogitsWarper(plan.top_p))
    return processors
