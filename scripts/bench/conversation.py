#!/usr/bin/env python3
"""A conversation that outgrows the context many times: the first token of each of its turns.

A worker in a process of its own, asked through the bus as the prompt asks it: the whole
conversation at every turn. Beside each twentieth turn the same prompt with another beginning, of
which nothing is computed yet, is what a full prefill takes. Quote the ratio::

    .venv/bin/python scripts/bench/conversation.py --json now.json
    .venv/bin/python scripts/bench/conversation.py --draw before.json now.json ahead.json

The last one draws ``conversation.png`` of what this script wrote in other checkouts, or with
``--ahead``; the names of the files are those of the lines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from worker import GREEDY, Home, Worker, scratch

from shammah.bus.client import new_request_id
from shammah.bus.messages import ChatMessage, Done, Prefill, Sampling, Token

SYSTEM = "You are a helpful assistant. Answer in a few sentences."
OTHER = "Be brief, and say nothing that is not so. Somebody reads this on a small screen."
THINGS = ("a tide", "the moon", "a glacier", "bread", "a sail", "rust", "a compass", "wool", "salt")
ASKED = (
    "What should a child know of {}? I have to explain it at school tomorrow.",
    "And how does that compare with {}? Take the differences one by one, please.",
    "Who first wrote about {}, as far as is known, and in which language was it?",
    "Is it true that {} was once worth more than silver? I read so in an old book.",
)


@dataclass
class Measured:
    """One turn: seconds to the first token, and tokens of the prompt; ``unseen``: messages that
    were cut; ``full_s``: of a prompt of which nothing was computed (0: not tried)."""

    first_s: float
    tokens: int
    computed: int
    unseen: int
    full_s: float = 0.0


def ask(
    worker: Worker, talk: list[ChatMessage], sampling: Sampling, tokens: int
) -> tuple[str, Measured]:
    began, first, text = time.perf_counter(), 0.0, ""
    for reply in worker.peer.generate(tuple(talk), sampling, tokens):
        if isinstance(reply, Token):
            first = first or time.perf_counter() - began
            text += reply.text
    assert isinstance(reply, Done), reply
    usage = reply.usage
    computed = usage.input_tokens - usage.reused_tokens
    unseen = getattr(usage, "unseen", 0)  # versions that cut at every turn do not say
    return text, Measured(first, usage.input_tokens, computed, unseen)


def converse(options: argparse.Namespace) -> list[Measured]:
    turns = []
    with scratch() as directory:
        home = Home.make(directory, options.engine)
        config = directory / options.engine / "config.toml"
        config.write_text(f"{config.read_text()}context_length = {options.context}\n")
        worker = Worker(home, options.model)
        try:
            talk = [ChatMessage("system", SYSTEM)]
            ask(worker, [*talk, ChatMessage("user", "Hello.")], GREEDY, 2)
            for number in range(options.turns):
                question = ASKED[number % len(ASKED)].format(THINGS[number % len(THINGS)])
                talk.append(ChatMessage("user", f"{number + 1}. {question}"))
                sampling = Sampling(temperature=0.7, seed=number)
                answer, measured = ask(worker, talk, sampling, options.answer)
                if number % 20 == 19:
                    again = [ChatMessage("system", OTHER), *talk[1:]]
                    measured.full_s = ask(worker, again, GREEDY, 2)[1].first_s
                turns.append(measured)
                talk.append(ChatMessage("assistant", answer or "I do not know."))
                if (
                    options.ahead
                    and sum((measured.tokens, options.answer)) > options.context * 2 / 3
                ):
                    for _ in worker.peer.begin(Prefill(new_request_id(), tuple(talk))):
                        pass
        finally:
            worker.close()
    return turns


def tell(turns: list[Measured], context: int) -> dict[str, float]:
    """The figures: of the turns since something was cut, or since the prompt was as long as with
    versions that do not say."""
    full = next(at for at, one in enumerate(turns) if one.unseen or one.tokens > context * 0.8)
    after = turns[full + 1 :]
    fulls = [one.full_s for one in after if one.full_s]
    cuts = sum(one.unseen != before.unseen for before, one in pairwise(turns))
    return {
        "turns": len(turns),
        "full_since": full + 1,
        "cuts": cuts,
        "full_prefill_s": statistics.median(fulls),
        "first_median_s": statistics.median(one.first_s for one in after),
        "first_mean_s": statistics.mean(one.first_s for one in after),
        "first_worst_s": max(one.first_s for one in after),
        "median_ratio": statistics.median(one.first_s for one in after) / statistics.median(fulls),
        "mean_ratio": statistics.mean(one.first_s for one in after) / statistics.median(fulls),
        "computed_median": statistics.median(one.computed for one in after),
        "computed_mean": statistics.mean(one.computed for one in after),
        "tokens_mean": statistics.mean(one.tokens for one in after),
    }


def draw(files: list[Path]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(10, 6), sharex=True)
    for number, file in enumerate(files):
        turns = [Measured(**one) for one in json.loads(file.read_text())["by_turn"]]
        fulls = statistics.median(one.full_s for one in turns if one.full_s)
        numbers, style = range(1, len(turns) + 1), {"label": file.stem, "color": f"C{number}"}
        upper.plot(numbers, [one.first_s / fulls for one in turns], **style)
        lower.plot(numbers, [one.computed for one in turns], **style)
    upper.axhline(0.15, color="grey", linewidth=0.8, linestyle=":")
    upper.set(ylabel="first token, full prefill = 1", ylim=(0, None))
    lower.set(ylabel="tokens computed of the prompt", xlabel="turn", ylim=(0, None))
    upper.legend()
    figure.tight_layout()
    figure.savefig("conversation.png", dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--engine", default="native")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--answer", type=int, default=40)
    parser.add_argument(
        "--ahead", action="store_true", help="read ahead what fills the context, as the prompt does"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--draw", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args()
    if options.draw:
        draw(options.draw)
        return
    turns = converse(options)
    found = tell(turns, options.context)
    print(json.dumps(found, indent=1))
    if options.json:
        by_turn = [asdict(one) for one in turns]
        options.json.write_text(json.dumps({"figures": found, "by_turn": by_turn}))


if __name__ == "__main__":
    main()
