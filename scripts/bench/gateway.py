"""What HTTP costs: clients that ask through the gateway and through the bus, in turns.

Prints tokens a second of all clients together and their ratio, and the time to the first byte of
one client. Both ways get the same questions, in such an order that none is remembered of the other
way.

    .venv/bin/python scripts/bench/gateway.py --clients 8 --tokens 64 --rounds 6 --firsts 200

With ``--server NAME/MODEL`` a server of the settings answers, and stands where the bus does: it is
asked directly and through all of Shammah.

With ``--under-attack`` the first token through the bus, as the prompt asks, in turns while nothing
else happens and while the gateway is attacked (``attacks.py``).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from shammah.bus.client import Peer
from shammah.bus.endpoints import lock_holder, open_endpoints
from shammah.bus.messages import ChatMessage, Done, Sampling, Token
from shammah.settings.load import load_settings
from shammah.supervision.gateway_use import read_token
from shammah.supervision.lifecycle import connect

QUESTION = "Tell me a long story about a lighthouse and its keeper."
PORT = 11689
ATTACKS = str(Path(__file__).with_name("attacks.py"))
WAKE_S = 0.2
"""How long an attack runs before its effect is measured."""

Asked = Callable[[int, int], tuple[int, float]]
"""A question, by its number and the tokens of its answer: how many came, and the seconds to the
first."""


def by_http(base_url: str, token: str, model: str = "local") -> Asked:
    url = urlsplit(base_url)

    def ask(number: int, tokens: int) -> tuple[int, float]:
        connection = http.client.HTTPConnection(url.netloc)
        asked = {
            "model": model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": f"{number}. {QUESTION}"}],
        }
        began = time.monotonic()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request("POST", f"{url.path}/chat/completions", json.dumps(asked), headers)
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


def rate(ask: Asked, clients: int, tokens: int, begin: int) -> float:
    """Tokens a second of all clients together."""
    began = time.monotonic()
    with ThreadPoolExecutor(clients) as threads:
        counts = threads.map(lambda number: ask(begin + number, tokens)[0], range(clients))
        return sum(counts) / (time.monotonic() - began)


def compare_rates(bus: Asked, http: Asked, options: argparse.Namespace) -> None:
    """Twice the rounds: what one way asks first, the other asks when that is forgotten."""
    ratios, rates, used = [], [], processor_s()
    for turn in range(options.rounds):
        sets = [1000 * turn + 100 * one for one in (1, 2)]
        order = [(bus, sets[0]), (http, sets[1]), (bus, sets[1]), (http, sets[0])]
        if turn % 2:
            order = [(http if ask is bus else bus, begin) for ask, begin in order]
        found = {
            (ask is http, begin): rate(ask, options.clients, options.tokens, begin)
            for ask, begin in order
        }
        for begin in sets:
            ratios.append(found[True, begin] / found[False, begin])
            rates.append(found[True, begin])
    cuts = statistics.quantiles(ratios, n=4)
    tokens = len(rates) * options.clients * options.tokens
    print(f"{options.clients} clients by http: {statistics.median(rates):.1f} tok/s", end="; ")
    print(f"processor of the gateway: {1000 * (processor_s() - used) / tokens:.2f} ms a token")
    print(
        f"http / {options.other}: median {cuts[1]:.3f}, quartiles {cuts[0]:.3f} {cuts[2]:.3f}",
        end=" ",
    )
    print(f"of {len(ratios)}")


def compare_firsts(bus: Asked, http: Asked, count: int, other: str) -> None:
    """The first byte of both ways, which begin in turns."""
    found: dict[str, list[float]] = {other: [], "http": []}
    used = processor_s()
    for number in range(count):
        ways = [(other, bus), ("http", http)]
        for at, (name, ask) in enumerate(ways if number % 2 else ways[::-1]):
            # Never what the other has asked.
            found[name].append(1000 * ask(50000 + 2 * number + at, 1)[1])
    show(found)
    pairs = zip(found[other], found["http"], strict=True)
    print(
        f"http - {other}: median of the pairs {statistics.median(b - a for a, b in pairs):.1f} ms"
    )
    taken = 1000 * (processor_s() - used) / count
    print(f"processor of the gateway: {taken:.1f} ms a question and an answer of a token")


def compare_attacked(bus: Asked, token: str, count: int) -> None:
    """The first token through the bus, with and without an attack."""
    found: dict[str, list[float]] = {"idle": [], "attacked": []}
    used = processor_s()
    with attacks(token) as attacker:
        for number in range(count):
            for at, name in enumerate(found if number % 2 else reversed(found)):
                attacker.send_signal(signal.SIGCONT if name == "attacked" else signal.SIGSTOP)
                time.sleep(WAKE_S)
                found[name].append(1000 * bus(90000 + 2 * number + at, 1)[1])
    show(found)
    pairs = zip(found["idle"], found["attacked"], strict=True)
    print(f"attacked / idle: median of the pairs {statistics.median(b / a for a, b in pairs):.3f}")
    print(f"processor of the gateway: {processor_s() - used:.1f} s")


@contextmanager
def attacks(token: str) -> Iterator[subprocess.Popen[str]]:
    """All of them at once; at the end it says what became of them."""
    command = [sys.executable, "-P", ATTACKS, "--port", str(PORT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as attacker:
        assert attacker.stdin is not None
        print(token, file=attacker.stdin, flush=True)
        try:
            yield attacker
        finally:
            attacker.send_signal(signal.SIGCONT)
            attacker.stdin.close()


def processor_s() -> float:
    """The time of all processors that the gateway has used so far."""
    times = psutil.Process(lock_holder(open_endpoints(os.environ).lock("gateway"))).cpu_times()
    return times.user + times.system


def show(found: dict[str, list[float]]) -> None:
    for name, some in found.items():
        cuts = statistics.quantiles(some, n=100)
        print(f"first by {name}: p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f}, of {len(some)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--firsts", type=int, default=200)
    parser.add_argument("--under-attack", action="store_true")
    parser.add_argument("--server", default="", metavar="NAME/MODEL")
    options = parser.parse_args()
    options.other = "server" if options.server else "bus"
    model = f"server:{options.server}" if options.server else "starter"
    settings = load_settings(os.environ, model)
    serve = [sys.executable, "-P", "-m", "shammah", "serve", "--background"]
    subprocess.run([*serve, "--port", str(PORT), "--model", model], check=True)
    peer = connect(settings, "inference", "bench", os.environ)
    token = read_token(settings.home)
    bus, http = by_bus(peer), by_http(f"http://127.0.0.1:{PORT}/v1", token)
    if options.server:
        server = settings.local_server()
        bus = by_http(server.base_url, server.key, server.model)
    try:
        for ask in (bus, http):
            ask(0, 8)
        if options.under_attack:
            compare_attacked(bus, token, options.firsts)
            return
        if options.rounds:
            compare_rates(bus, http, options)
        if options.firsts:
            compare_firsts(bus, http, options.firsts, options.other)
    finally:
        peer.close()
        for role in ("gateway", "inference"):
            subprocess.run([sys.executable, "-P", "-m", "shammah", "stop", role], check=True)


if __name__ == "__main__":
    main()
