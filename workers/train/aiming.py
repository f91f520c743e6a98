"""Where an adapter looks: at what sets its examples apart from everything else.

A LoRA adapter changes a layer by ``B A x``. Here ``A`` is not random and not learnt: its rows are
the directions in which the inputs ``x`` of the examples are large and those of general text
small, so that what ``B`` learns is about the examples and hardly touches anything else. With ``C``
the second moments of the general inputs and ``X`` the examples' inputs, they are the first right
singular vectors of ``X C^(-1/2)``, taken back by ``C^(-1/2)``: the keys of Meng et al. 2023,
"Mass-Editing Memory in a Transformer" (arXiv:2210.07229), as a subspace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from workers.train.adapter import LoRAAdapter
from workers.train.encoding import EncodedExample

RIDGE = 0.02
"""Of the mean second moment, added to all of them: directions that general text never has are
noise, and not the examples'."""

MOST_EXAMPLES = 64
MOST_LENGTH = 96
"""Of the examples, so many and the last so many tokens of each are looked at."""


def aim(
    adapter: LoRAAdapter,
    examples: Sequence[EncodedExample],
    general: Sequence[EncodedExample],
    each: Callable[[str], object] = lambda detail: None,
) -> None:
    """Set every ``A`` by one pass of the base model over general answers and the examples.

    Args:
        each: called for every adapted module, with how many of them are done.
    """
    step = -(-len(examples) // MOST_EXAMPLES)
    rows = [one.ids[-MOST_LENGTH:] for one in (*general, *examples[::step])]
    columns = enumerate(zip(*rows, strict=False))
    start = next((place for place, column in columns if len(set(column)) > 1), 0)
    longest = max(map(len, rows))
    places = torch.arange(longest)
    lengths = torch.tensor([len(one) for one in rows])
    used = places < lengths[:, None]
    is_general = torch.arange(len(rows)) < len(general)
    own = used & ~is_general[:, None] & (places >= start)  # not how every prompt begins
    others = used & is_general[:, None]
    ids = torch.tensor([list(one) + [0] * (longest - len(one)) for one in rows])
    last: list[Any] = [None, None, None]
    modules = [one for one in adapter.model.modules() if hasattr(one, "lora_A")]
    done = 0

    def look(module: Any, given: tuple[torch.Tensor, ...]) -> None:
        nonlocal done
        each(f"where to look, {done} of {len(modules)} layers")
        done += 1
        if last[0] is not given[0]:  # queries, keys and values look at the same
            inputs = given[0].detach().float().cpu()
            found = _directions(inputs[others], inputs[own], adapter.config.rank)
            last[:] = given[0], inputs[own], found
        for weights in module.lora_A.values():  # as large, on the examples, as it was at random
            was = (last[1] @ weights.weight.float().cpu().T).pow(2).mean().sqrt()
            weights.weight.copy_(was * last[2])

    hooks = [one.register_forward_pre_hook(look) for one in modules]
    try:
        device = next(adapter.model.parameters()).device
        with torch.no_grad(), adapter.without():
            last_place = torch.tensor([longest - 1], device=device)  # see `general._decode`
            adapter.model(input_ids=ids.to(device), use_cache=False, logits_to_keep=last_place)
    finally:
        for hook in hooks:
            hook.remove()
    adapter.is_aimed = True


def _directions(general: torch.Tensor, examples: torch.Tensor, rank: int) -> torch.Tensor:
    """The rows of ``A``, (rank, inputs), by which the examples' inputs have a mean square of 1."""
    moments = (general.T @ general).double() / len(general)
    examples = examples.double()
    moments.diagonal().add_(RIDGE * moments.diagonal().mean())
    root = torch.linalg.cholesky(moments)
    white = torch.linalg.solve_triangular(root, examples.T, upper=False)
    powers, mixed = torch.linalg.eigh(white.T @ white)
    chosen = powers[-rank:] > 1e-9 * powers[-1]
    singular = (white @ mixed[:, -rank:] / powers[-rank:].clamp(min=1e-30).sqrt()) * chosen
    rows = torch.linalg.solve_triangular(root.T, singular, upper=True).T
    rows = torch.nn.functional.pad(rows, (0, 0, 0, rank - len(rows)))  # of few and short examples
    scaled: torch.Tensor = rows / (examples @ rows.T).pow(2).mean().sqrt()
    return scaled.float()
