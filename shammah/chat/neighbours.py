"""The servers beside the local model, as the router sees them. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from shammah.bus.messages import Failed, NotAvailable, Ready, State
from shammah.router.route import Beside
from shammah.settings.model import ServerSettings

UNHEARD = "Nothing has been heard of it yet."


def see_servers(
    named: Mapping[str, ServerSettings], state: State | None
) -> tuple[tuple[Beside, ...], bool]:
    """The servers that are ``named``, by the state of the worker that asks them, and whether
    something will be heard of them soon."""
    heard = {one.name: one for one in state.servers} if isinstance(state, Ready) else {}
    match state:
        case NotAvailable(reason):
            unheard = reason
        case Failed(_, message):
            unheard = message
        case _:
            unheard = UNHEARD
    found = []
    for name, settings in named.items():
        one = heard.get(name)
        why = one.why if one else unheard
        model, context = (one.model, one.context_length) if one else (settings.model, 0)
        found.append(Beside(name, model, context, settings.takes_private, why))
    return tuple(found), bool(named) and not isinstance(state, Ready | NotAvailable | Failed)
