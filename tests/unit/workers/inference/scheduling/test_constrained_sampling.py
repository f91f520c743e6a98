"""What may not come is never chosen, and changes nothing in the choice among the rest."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from workers.inference.scheduling.sampler import Sampler, shortlist
from workers.inference.scheduling.sampling import SamplingPlan

VOCABULARY = 3000
PLANS = {
    "greedy": SamplingPlan(),
    "all": SamplingPlan(temperature=1.0, seed=3),
    "top_k": SamplingPlan(temperature=0.7, top_k=20, top_p=0.8, seed=3),
    "penalties": SamplingPlan(
        temperature=0.7, top_k=20, repetition_penalty=1.1, presence_penalty=0.5, seed=3
    ),
    "min_p": SamplingPlan(temperature=1.0, min_p=0.05, seed=3),
}


class Fixed:
    """Allows these, and keeps what has come."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self.mask = mask
        self.taken: list[int] = []

    def allowed(self) -> NDArray[np.bool_]:
        return self.mask

    def take(self, token: int) -> None:
        self.taken.append(token)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("count", [1, 2, 15, 200, 1500, 2999])
@pytest.mark.parametrize("top", [0, 40, 300])
def test_it_chooses_as_if_the_rest_could_not_come(name: str, count: int, top: int) -> None:
    random = np.random.default_rng(count)
    prompt = list(range(50))
    mask = np.zeros(VOCABULARY + 32, np.bool_)
    mask[random.choice(VOCABULARY, count, replace=False)] = True
    constraint = Fixed(mask)
    held, plain = Sampler(PLANS[name], prompt, constraint), Sampler(PLANS[name], prompt)
    chosen = []
    for _ in range(30):
        logits = (3 * random.standard_normal(VOCABULARY)).astype(np.float32)
        only = np.where(mask[:VOCABULARY], logits, np.float32(-1e9))
        some = shortlist(logits, top) if top and held.top else logits
        chosen.append(held.choose(some))
        assert chosen[-1] == plain.choose(only)
    assert constraint.taken == chosen
    assert mask[chosen].all()
