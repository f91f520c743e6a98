"""Why ``auto`` takes the model that it does, what else would fit, and how fast. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shammah.models.catalogue import CATALOGUE, GIB, Machine, select_model
from shammah.settings.model import Settings
from shammah.supervision.plan import Place, need_of

FORMS = {"int8": "8-bit weights", "int4": "4-bit weights"}


def list_choices(settings: Settings, machine: Machine) -> list[dict[str, Any]]:
    """Every size of the catalogue as it would be on ``machine``.

    ``memory_from``: GiB of memory from which ``auto`` takes it; ``weights``: bytes; ``permitted``:
    its licence is one that the settings want.
    """
    place = Place(machine, settings.inference, permissive=settings.permissive)
    chosen = select_model(
        machine.memory, permissive=settings.permissive, gpu_memory=machine.gpu_memory
    )
    found = []
    for one in CATALOGUE:
        need = need_of(one.shape, one.parameters, place)
        found.append(
            {
                "size": one.size,
                "chosen": one == chosen,
                "memory_from": one.memory_from,
                "permitted": one.permissive or not settings.permissive,
                "fits": need.context_fits >= need.least_context,
                "device": need.device,
                "form": need.dtype,
                "weights": need.weights,
            }
        )
    return found


def describe_choices(
    choices: Sequence[Mapping[str, Any]], memory: int, bandwidth: float
) -> Iterator[str]:
    """Lines. ``memory`` in bytes; ``bandwidth``: GB that are read from memory in a second, 0: not
    known."""
    chosen = next((one for one in choices if one["chosen"]), None)
    has = f"{memory / GIB:.1f} GiB of memory"
    if chosen is None:
        yield f"none: {has} are less than the {choices[0]['memory_from']} GiB of the smallest"
    elif chosen["device"] == "cuda":
        yield f"{chosen['size']}: the largest that this machine's GPU holds"
    else:
        above = [one for one in choices if one["memory_from"] > memory / GIB and one["permitted"]]
        more = f"; {above[0]['size']}: {above[0]['memory_from']} GiB" if above else ""
        yield (
            f"{chosen['size']}: the largest that leaves other programs room in {has} "
            f"(from {chosen['memory_from']} GiB{more})"
        )
    for one in choices:
        yield _describe(one, bandwidth)
    yield "`shammah models use SIZE` takes another one"


def _describe(one: Mapping[str, Any], bandwidth: float) -> str:
    if not one["fits"]:
        return f"{one['size']} does not fit"
    parts = [f"{FORMS.get(one['form'], one['form'])}, {one['weights'] / GIB:.1f} GiB"]
    if bandwidth and one["device"] == "cpu":
        parts.append(f"{_rate(1e9 * bandwidth / one['weights'])} tokens/s at most")
    parts += [] if one["permitted"] else ["a licence that you have ruled out"]
    return f"{one['size']} fits ({', '.join(parts)})"


def _rate(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}"
