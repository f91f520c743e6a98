"""The scheduler: who is next, and what a step computes."""

from __future__ import annotations

from workers.inference.engine import SequenceRequest
from workers.inference.scheduling.sampling import SamplingPlan
from workers.inference.scheduling.scheduler import Plan, Scheduler, Sequence

ROWS, CHUNK, SHARED = 8, 100, 10


def _request(name: str, prompt: int = 5, client: str = "") -> SequenceRequest:
    return SequenceRequest(
        name, tuple(range(prompt)), SamplingPlan(), 8, frozenset(), client or name
    )


def _start(scheduler: Scheduler, *names: str, prompt: int = 5) -> list[Sequence]:
    for name in names:
        scheduler.add(_request(name, prompt))
        sequence = scheduler.next_waiting(ROWS)
        assert sequence is not None
        scheduler.start(sequence, len(scheduler.running), 0)
    return scheduler.running


def _compute(plan: Plan) -> str:
    assert plan.prefill is not None
    plan.prefill.computed += plan.chunk
    return plan.prefill.request.request_id


def test_who_came_first_is_first() -> None:
    scheduler = Scheduler()
    for name in "abc":
        scheduler.add(_request(name))
    chosen = scheduler.next_waiting(ROWS)
    assert chosen is not None
    assert chosen.request.request_id == "a"


def test_a_client_with_many_questions_does_not_hold_up_another() -> None:
    scheduler = Scheduler()
    for name in ("a1", "a2", "a3"):
        scheduler.add(_request(name, client="a"))
    scheduler.add(_request("b1", client="b"))
    order = []
    while (sequence := scheduler.next_waiting(ROWS)) is not None:
        scheduler.start(sequence, len(order), 0)
        order.append(sequence.request.request_id)
    assert order == ["a1", "b1", "a2", "a3"]


def test_where_all_rows_are_taken_a_client_without_any_goes_first() -> None:
    scheduler = Scheduler()
    for number in range(ROWS + 3):
        scheduler.add(_request(f"a{number}", client="a"))
    while (sequence := scheduler.next_waiting(ROWS)) is not None:
        scheduler.start(sequence, len(scheduler.running), 0)
        sequence.computed = 5
    theirs = tuple(scheduler.running)
    assert len(theirs) == ROWS
    scheduler.add(_request("b", client="b"))
    newcomer = scheduler.next_waiting(ROWS)
    assert newcomer is not None
    scheduler.start(newcomer, ROWS, 0)
    assert scheduler.next_waiting(ROWS) is None
    assert scheduler.plan(ROWS, CHUNK, SHARED) == Plan(newcomer, 5, theirs[:-1])
    newcomer.computed = 5
    assert scheduler.plan(ROWS, CHUNK, SHARED).decode == (newcomer, *theirs[:-1])
    scheduler.remove(newcomer)
    assert scheduler.plan(ROWS, CHUNK, SHARED).decode == theirs


def test_prompts_take_turns_so_that_a_short_one_overtakes() -> None:
    scheduler = Scheduler()
    _start(scheduler, "long", prompt=500)
    _start(scheduler, "short", prompt=150)
    order = [_compute(scheduler.plan(ROWS, CHUNK, SHARED)) for _ in range(7)]
    assert order == ["long", "short", "long", "short", "long", "long", "long"]


def test_a_prompt_is_computed_in_smaller_chunks_while_others_wait_for_their_token() -> None:
    scheduler = Scheduler()
    first, second = _start(scheduler, "a", "b", prompt=250)
    first.computed = 250
    plan = scheduler.plan(ROWS, CHUNK, SHARED)
    assert (plan.prefill, plan.chunk, plan.decode) == (second, SHARED, (first,))


def test_the_last_chunk_is_what_is_left() -> None:
    scheduler = Scheduler()
    [sequence] = _start(scheduler, "a", prompt=130)
    sequence.computed = CHUNK
    assert scheduler.plan(ROWS, CHUNK, SHARED) == Plan(sequence, 30, ())


def test_what_is_reused_is_not_computed() -> None:
    scheduler = Scheduler()
    scheduler.add(_request("a", 20))
    sequence = scheduler.next_waiting(ROWS)
    assert sequence is not None
    scheduler.start(sequence, 3, 15)
    assert scheduler.plan(ROWS, CHUNK, SHARED) == Plan(sequence, 5, ())
    assert (sequence.slot, sequence.reused, sequence.length) == (3, 15, 28)


def test_nothing_to_do_is_an_empty_step() -> None:
    assert Scheduler().plan(ROWS, CHUNK, SHARED) == Plan(None, 0, ())
    assert Scheduler().next_waiting(ROWS) is None


def test_removed_wherever_it_is() -> None:
    scheduler = Scheduler()
    _start(scheduler, "a")
    scheduler.add(_request("b"))
    for name in "ab":
        sequence = scheduler.find(name)
        assert sequence is not None
        scheduler.remove(sequence)
        assert scheduler.find(name) is None
    assert not scheduler.running
    assert not scheduler.waiting
