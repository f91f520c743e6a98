"""What HTTP costs: clients that ask at once, through the gateway and through the bus, in turns.

Prints tokens a second of each round, their ratio, and the time to the first byte with one client.

    .venv/bin/python scripts/bench/gateway.py --clients 8 --tokens 64 --rounds 3
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from shammah.bus.client import Peer
from shammah.bus.messages import ChatMessage, Done, Sampling, Token
from shammah.settings.load import load_settings
from shammah.supervision.gateway_use import read_token
from shammah.supervision.lifecycle import connect

QUESTION = "Tell me a long story about a lighthouse and its keeper."
PORT = 11699

Asked = Callable[[int, int], tuple[int, float]]
"""A question, by its number and the tokens of its answer: how many came, and the seconds to the
first."""


def by_http(token: str) -> Asked:
    def ask(number: int, tokens: int) -> tuple[int, float]:
        connection = http.client.HTTPConnection("127.0.0.1", PORT)
        asked = {
            "model": "local",
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": f"{number}. {QUESTION}"}],
        }
        began = time.monotonic()
        headers = {"Authorization": f"Bearer {token}"}
        connection.request("POST", "/v1/chat/completions", json.dumps(asked), headers)
        response = connection.getresponse()
        response.read(1)
        first = time.monotonic() - began
        lines = response.read().decode().splitlines()
        connection.close()
        usage = [json.loads(line[6:]) for line in lines if line.startswith("data: {")][-1]["usage"]
        return int(usage["completion_tokens"]), first

    return ask


def by_bus(peer: Peer) -> Asked:
    def ask(number: int, tokens: int) -> tuple[int, float]:
        message = ChatMessage("user", f"{number}. {QUESTION}")
        began, first, count = time.monotonic(), 0.0, 0
        for reply in peer.generate((message,), Sampling(temperature=0), tokens):
            if isinstance(reply, Token) and not first:
                first = time.monotonic() - began
            if isinstance(reply, Done):
                count = reply.usage.output_tokens
        return count, first

    return ask


def measure(ask: Asked, clients: int, tokens: int, begin: int) -> float:
    """Tokens a second of all clients together."""
    began = time.monotonic()
    with ThreadPoolExecutor(clients) as threads:
        counts = threads.map(lambda number: ask(begin + number, tokens)[0], range(clients))
        return sum(counts) / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    settings = load_settings(os.environ, "starter")
    serve = [sys.executable, "-P", "-m", "shammah", "serve", "--background"]
    subprocess.run([*serve, "--port", str(PORT), "--model", "starter"], check=True)
    peer = connect(settings, "inference", "bench", os.environ)
    ways = {"bus": by_bus(peer), "http": by_http(read_token(settings.home))}
    try:
        for ask in ways.values():
            ask(0, 8)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(options.rounds):
            for at, (name, ask) in enumerate(ways.items()):
                begin = 100 * (2 * turn + at)
                rates[name].append(measure(ask, options.clients, options.tokens, begin))
        ratios = [http / bus for bus, http in zip(rates["bus"], rates["http"], strict=True)]
        for name, found in rates.items():
            print(name, *(f"{rate:.1f}" for rate in found), "tok/s")
        print("http / bus:", f"{statistics.median(ratios):.3f}")
        firsts: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(40):
            for at, (name, ask) in enumerate(ways.items()):  # never what the other has asked
                firsts[name].append(ask(5000 + 2 * number + at, 1)[1])
        for name, found in firsts.items():
            cuts = statistics.quantiles(found, n=100)
            print(f"first byte by {name}: p50 {1000 * cuts[49]:.1f} ms, p99 {1000 * cuts[98]:.1f}")
    finally:
        peer.close()
        for role in ("gateway", "inference"):
            subprocess.run([sys.executable, "-P", "-m", "shammah", "stop", role], check=True)


if __name__ == "__main__":
    main()
