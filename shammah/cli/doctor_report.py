"""Lines for people about what ``shammah doctor`` found. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shammah.cli.doctor_choices import describe_choices
from shammah.models.catalogue import GIB
from shammah.models.footprint import BITS
from shammah.terminal.output import as_invoked
from shammah.terminal.text import printable
from shammah.terminal.wording import describe_size

Part = Mapping[str, Any]

WIDTH = 11
HANGING = " " * (WIDTH + 1)
"""Indents the rest of a line that is too long for the terminal."""

MOST_MODELS = 6
"""Of one server, that are shown."""

OWN = ("torch", "transformers", "numpy")
"""The libraries that matter most, listed first."""


def report(document: Part) -> Iterator[tuple[str, bool]]:
    """Yield lines, each with whether it reports a problem."""
    for name, text in _facts(document):
        yield printable(f"{name:{WIDTH}} {text}").rstrip(), False
    for problem in document["problems"]:
        name = "problem" if problem["blocking"] else "note"
        yield printable(f"{name:{WIDTH}} {problem['message']}"), problem["blocking"]
        if problem["hint"]:
            yield printable(f"{'':{WIDTH}} {as_invoked(problem['hint'])}"), False
    if document["ok"]:
        yield f"{'verdict':{WIDTH}} OK, Shammah can answer", False


def _facts(document: Part) -> Iterator[tuple[str, str]]:
    yield "shammah", document["shammah"]
    start = document.get("start", {})
    if "ratio" in start:
        bare = f"{start['ratio']:.1f} times as long as bare Python"
        yield "prompt", f"after {1000 * start['prompt_s']:.0f} ms, {bare}"
    yield from _machine(document)
    yield from _libraries(document.get("libraries", {}))
    for name, found in document["directories"].items():
        state = found["error"] or f"{describe_size(found['free'])} free"
        yield name, f"{found['path']} ({state}{'' if found['exists'] else ', not created yet'})"
    hub = document["hub"]
    words = [hub["endpoint"]] + ["offline"] * hub["offline"] + ["with a token"] * hub["token"]
    yield "hub", ", ".join(words)
    cloud = document["cloud"]
    missing = "key set but not used" if cloud["key"] else "no key set; nothing is sent there"
    known = f"{cloud['model']}{', key set' if cloud['key'] else ''}"
    yield "cloud", known if cloud["configured"] else missing
    changed = [f"{name} = {value}" for name, value in document["settings"].items()]
    yield "settings", "; ".join(changed) or "all defaults"
    yield from _model(document.get("model", {}))
    machine = document["machine"]
    memory = min(machine["memory"], machine["memory_limit"] or machine["memory"])
    for number, line in enumerate(describe_choices(document["choices"], memory)):
        yield "" if number else "auto", as_invoked(line)
    kernels = document.get("kernels", {})
    if "compiled" in kernels:
        state = "compiled" if kernels["compiled"] else "not compiled yet"
        yield "kernels", f"{state} ({kernels['directory']})"
    for server in document.get("network", {}).values():
        through = f" through {server['through']}" if server["through"] else ""
        reached = f"connected in {1000 * server['seconds']:.0f} ms"
        yield "network", f"{server['host']}{through}: {server['error'] or reached}"
    for name, server in document["servers"].items():
        models = ", ".join(server["models"][:MOST_MODELS])
        yield "server", f"{name} ({server['base_url']}): {server['error'] or models}"
        if not server["named"]:
            command = f"shammah config set servers.{name}.base_url {server['base_url']}"
            yield "", as_invoked(f"to use it: `{command}`, then `shammah --model server:{name}`")
    running = {role: one for role, one in document["workers"].items() if one["running"]}
    for role, one in running.items():
        yield "worker", f"{role} (process {one['pid']}): {one['said'] or 'does not answer'}"
        if one["said"]:
            held = ", ".join(one["held"]) or "nothing (`shammah doctor --prove` says why)"
            yield "", as_invoked(f"confined by the kernel: {held}")
    if not running:
        yield "worker", "none running"
    if took := document.get("took"):
        yield "took", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in took.items())


def _machine(document: Part) -> Iterator[tuple[str, str]]:
    machine = document["machine"]
    cores = f"{machine['cores']} cores" if machine["cores"] != 1 else "1 core"
    yield "machine", ", ".join([machine["system"], machine["processor"], cores])
    limit = machine["memory_limit"]
    limited = f", limited to {limit / GIB:.1f}" if limit else ""
    free = f"{machine['memory_free'] / GIB:.1f} GiB free"
    yield "memory", f"{machine['memory'] / GIB:.1f} GiB{limited}, {free}"
    found = document.get("accelerator", {})
    if found.get("device") == "cuda":
        free = f"{found['free'] / GIB:.1f} free"
        yield "gpu", f"{found['name']}, {found['total'] / GIB:.1f} GiB, {free}"
    elif found.get("device") or machine["mps"]:
        yield "gpu", "Metal, shares main memory"
    elif machine["gpu_memory"]:
        yield "gpu", f"{machine['gpu_memory'] / GIB:.1f} GiB, not usable by torch"
    else:
        yield "gpu", "none usable by torch"


def _libraries(found: Part) -> Iterator[tuple[str, str]]:
    if "python" not in found:
        return
    yield "python", found["python"]
    names = [*OWN, *(name for name in found if name not in (*OWN, "python"))]
    versions = [f"{name} {found[name] or 'missing'}" for name in names if name in found]
    for begin in range(0, len(versions), 4):
        yield "" if begin else "libraries", ", ".join(versions[begin : begin + 4])


def _model(model: Part) -> Iterator[tuple[str, str]]:
    if "name" not in model:
        return
    if model["here"]:
        yield "model", f"{model['name']} ({model['directory']})"
        yield from _computed(model)
        return
    here = "on this disk but not verified" if model["present"] else "not on this disk"
    yield "model", f"{model['name']}, {here}"
    fallback = model["fallback"]
    if fallback and "error" not in fallback:
        yield "meanwhile", f"{fallback['name']} ({fallback['directory']})"
        yield from _computed(fallback)


def _computed(model: Part) -> Iterator[tuple[str, str]]:
    form = BITS.get(model["quantization"], model["dtype"])
    yield "engine", f"{model['engine']}: {model['engine_why']}"
    if best := model["next_best"]:
        yield "", f"next best: {best['engine']}, {best['why']}"
    if faster := model["faster"]:
        yield "", f"to have {faster['why']}: `{faster['install']}` ({faster['engine']})"
    yield "weights", f"{form} on {model['device']}: {model['why']}"
    yield from (("", notice) for notice in model["notices"])
    needed, free = model["needed"] / GIB, model["free"] / GIB
    yield "", f"{needed:.2f} GiB needed, {free:.1f} GiB free"
