"""Steps of one model: from rows to logits, by all threads of a team."""

from __future__ import annotations

import logging

import numpy as np

from workers.inference.native.architecture import Architecture
from workers.inference.native.attention import Queries
from workers.inference.native.kv_memory import KVMemory
from workers.inference.native.packed_model import make_room, model_of_zeros
from workers.inference.native.phases import new_counters
from workers.inference.native.rows import Rows
from workers.inference.native.step import Batch, Model, phases, step
from workers.inference.native.team import Team
from workers.inference.runner import Logits

log = logging.getLogger(__name__)

_SMALLEST = Architecture(
    layers=1,
    hidden=64,
    heads=1,
    kv_heads=1,
    head_size=16,
    intermediate=64,
    vocabulary=16,
    positions=16,
    eps=1e-6,
    tied=True,
    has_bias=False,
    has_head_norms=False,
    frequencies=(0.0,) * 8,
)


class Computation:
    """A model that a team computes, with up to ``rows`` rows and ``answers`` answers a step."""

    def __init__(
        self, architecture: Architecture, model: Model, team: Team, rows: int, answers: int
    ) -> None:
        self._architecture = architecture
        self._model = model
        self._team = team
        self._room = make_room(architecture, rows, answers, team.size)

    def step(self, memory: KVMemory, rows: Rows) -> Logits:
        """The logits of the last rows, valid until the next step."""
        vocabulary = self._architecture.vocabulary
        assert 0 <= min(rows.slots) <= max(rows.slots) < memory.slots
        assert 0 <= min(rows.positions) <= max(rows.positions) < memory.capacity
        assert 0 <= min(rows.tokens) <= max(rows.tokens) < vocabulary
        positions = np.array(rows.positions, np.int64)
        queries = Queries(len(positions), rows.run, np.array(rows.slots, np.int64), positions)
        rotations = self._architecture.rotations(positions)
        tokens = np.array(rows.tokens, np.int64)
        batch = Batch(tokens, queries, *rotations, rows.answers)
        counters = new_counters(phases(self._architecture.layers))
        model, cache, room = self._model, memory.cache, self._room
        self._team.run(lambda member: step(member, counters, model, cache, batch, room))
        return room.logits[: rows.answers, :vocabulary]


def prepare_kernels(team: Team) -> None:
    """Compile the kernels, or load their code, with a model of the smallest size.

    A disk that cannot keep the code costs only time, at the next start.
    """
    nothing = Computation(_SMALLEST, model_of_zeros(_SMALLEST), team, 1, 1)
    memory = KVMemory(_SMALLEST, 1, 1)
    rows = Rows([0], [0], [0], 1, 1)
    try:
        nothing.step(memory, rows)
    except OSError as error:
        log.warning("the compiled kernels cannot be kept: %s", error)
        nothing.step(memory, rows)
