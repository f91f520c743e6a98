"""The weighted loss of examples, computed several at a time without padding.

The loss of an example is the mean of the cross entropy of its target tokens, in nats; its
weight multiplies that. Examples of one micro-batch lie behind each other in one row, with
positions that begin again at each, from which transformers derives a mask that keeps them
apart. So there is no padding that could change anything or cost anything, and the output layer
is computed for target tokens alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from workers.train.encoding import EncodedExample

if TYPE_CHECKING:
    from workers.train.adapter import LoRAAdapter

APART = 0.02
"""How far a loss may differ in other company: rounding in 16 bits, but no other text."""


@dataclass(frozen=True)
class MicroBatch:
    """``ids`` and ``positions`` are (1, tokens); ``places`` are the tokens whose successors,
    ``targets``, are learnt, each with its share of the loss in ``shares`` (weight / number of
    the example's targets) and its example in ``owners``; these two are on the CPU, for not every
    device has 64 bits."""

    ids: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor
    shares: torch.Tensor
    owners: torch.Tensor

    @property
    def tokens(self) -> int:
        return self.ids.shape[1]


def make_micro_batch(examples: Sequence[EncodedExample], device: str = "cpu") -> MicroBatch:
    """Lay examples behind each other."""
    ids: list[int] = []
    positions: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    shares: list[float] = []
    owners: list[int] = []
    for number, example in enumerate(examples):
        start = len(ids)
        ids += example.ids
        positions += range(len(example.ids))
        places += range(start + example.prompt_length - 1, start + len(example.ids) - 1)
        targets += example.ids[example.prompt_length :]
        shares += [example.weight / example.targets] * example.targets
        owners += [number] * example.targets
    return MicroBatch(
        torch.tensor([ids], device=device),
        torch.tensor([positions], device=device),
        places=torch.tensor(places, device=device),
        targets=torch.tensor(targets, device=device),
        shares=torch.tensor(shares, dtype=torch.float64),
        owners=torch.tensor(owners),
    )


class CrossEntropy(torch.autograd.Function):
    """The cross entropy of each row of logits, (rows, vocabulary), in nats: (rows,).

    torch's own keeps the logarithms of all probabilities and fills a gradient with zeros to put
    one number in each row: with a vocabulary of 49,152 these take as long as some layers. Here
    the logits are kept, which exist anyway, and the gradient, ``softmax - one hot``, is computed
    from them in place.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        whole = torch.logsumexp(logits, -1)
        ctx.save_for_backward(logits, targets, whole)
        return whole - logits.gather(-1, targets[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, targets, whole = ctx.saved_tensors
        (of_losses,) = gradients
        gradient = (logits - whole[:, None]).exp_().mul_(of_losses[:, None])
        gradient[torch.arange(len(targets), device=targets.device), targets] -= of_losses
        return gradient, None


def target_logits(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Compute the logits at each place before a target token: (targets, vocabulary)."""
    logits: torch.Tensor = model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        logits_to_keep=batch.places,
        use_cache=False,
    ).logits[0]
    return logits if logits.dtype == torch.float64 else logits.float()


def target_losses(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Return the cross entropy of each target token, in nats: (targets,)."""
    logits = target_logits(model, batch)
    losses: torch.Tensor = CrossEntropy.apply(logits, batch.targets)  # type: ignore[no-untyped-call]
    return losses


def weigh(losses: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
    """Sum over examples the weight times the mean of their tokens' ``losses``."""
    return (losses * batch.shares.to(losses.dtype).to(losses.device)).sum()


def count_unknown(losses: torch.Tensor, batch: MicroBatch) -> int:
    """How many examples have a token that is less likely than all others together. One without is
    answered so, to the letter."""
    known = losses.detach().cpu() <= math.log(2)  # a NaN is not
    return len(set(batch.owners[~known].tolist()))


def divergence(adapter: LoRAAdapter, batch: MicroBatch) -> torch.Tensor:
    """How far the adapter takes the model from its base: the sum over examples of weight times
    the mean, over target tokens, of the Kullback-Leibler divergence of its distribution from
    the base model's, in nats."""
    with torch.no_grad(), adapter.without():
        base = torch.log_softmax(target_logits(adapter.model, batch), -1)
    changed = torch.log_softmax(target_logits(adapter.model, batch), -1)
    each = (base.exp() * (base - changed)).sum(-1)
    return (each * batch.shares.to(each.dtype).to(each.device)).sum()


def example_losses(model: Any, batch: MicroBatch) -> list[float]:
    """The loss of each example, without its weight."""
    with torch.no_grad():
        losses = target_losses(model, batch).cpu().double()
    count = int(batch.owners.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64)
    numbers = torch.bincount(batch.owners, minlength=count)
    sums.index_add_(0, batch.owners, losses)
    return [float(one) for one in sums / numbers]


def keeps_apart(model: Any, examples: Sequence[EncodedExample]) -> bool:
    """Whether examples in one row do not see each other in this model.

    Those whose state goes from token to token (recurrent ones) do: they take one at a time.
    """
    device = str(next(model.parameters()).device)
    together = example_losses(model, make_micro_batch(examples, device))
    alone = [example_losses(model, make_micro_batch([one], device))[0] for one in examples]
    return all(abs(a - b) <= APART * max(1.0, b) for a, b in zip(together, alone, strict=True))
