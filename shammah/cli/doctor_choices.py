"""Why ``auto`` chooses its model, and what else fits. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shammah.models.catalogue import CATALOGUE, GIB, Machine, choices, select_model
from shammah.models.footprint import BITS
from shammah.settings.model import Settings
from shammah.supervision.plan import Place, need_of


def list_choices(settings: Settings, machine: Machine) -> list[dict[str, Any]]:
    """List every model of the catalogue as it would run on ``machine``.

    ``memory_from``: GiB of memory from which ``auto`` chooses it, 0: never; ``weights``: bytes;
    ``permitted``: the settings allow its licence.
    """
    place = Place(machine, settings.inference, permissive=settings.permissive)
    chosen = select_model(
        machine.memory, permissive=settings.permissive, gpu_memory=machine.gpu_memory
    )
    automatic = choices(permissive=settings.permissive)
    needs = [(one, need_of(one.shape, one.parameters, place)) for one in CATALOGUE]
    return [
        {
            "size": one.size,
            "chosen": one == chosen,
            "memory_from": one.memory_from if one in automatic else 0,
            "permitted": one.permissive or not settings.permissive,
            "fits": need.context_fits >= need.least_context,
            "device": need.device,
            "form": need.dtype,
            "weights": need.weights,
        }
        for one, need in needs
    ]


def describe_choices(listed: Sequence[Mapping[str, Any]], memory: int) -> Iterator[str]:
    """Yield lines. ``memory`` in bytes."""
    chosen = next((one for one in listed if one["chosen"]), None)
    has = f"{memory / GIB:.1f} GiB of memory"
    if chosen is None:
        yield f"none: {has}, and the smallest model needs {listed[0]['memory_from']} GiB"
    elif chosen["device"] == "cuda":
        yield f"{chosen['size']}: the largest that fits this machine's GPU"
    else:
        above = [one for one in listed if one["memory_from"] > memory / GIB]
        more = f"; {above[0]['size']}: {above[0]['memory_from']} GiB" if above else ""
        yield (
            f"{chosen['size']}: the largest that leaves room for other programs in {has} "
            f"(from {chosen['memory_from']} GiB{more})"
        )
    for one in listed:
        yield _describe(one)
    yield "to change it: `shammah models use SIZE`"


def _describe(one: Mapping[str, Any]) -> str:
    if not one["fits"]:
        return f"{one['size']} does not fit"
    parts = [f"{BITS.get(one['form'], one['form'])}, {one['weights'] / GIB:.1f} GiB"]
    parts += [] if one["permitted"] else ["licence ruled out by your settings"]
    return f"{one['size']} fits ({', '.join(parts)})"
