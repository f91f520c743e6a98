"""What each role may do, and nothing else. Pure: what is on this machine is told by `places`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from shammah.bus.record import record
from shammah.settings.model import Settings
from shammah.supervision.identity import PUBLIC_HUB, hub_endpoint
from workers.confinement.filter import Network

NAME_SERVICE = 53
"""Long answers of name servers come by TCP."""

TEMPORARY = "tmp"
"""In the home: a directory of each role, for what libraries put into temporary files."""


@record
class Policy:
    """What a process may do.

    Attributes:
        reads: files, and directories with all below.
        awaited: directories that are read, and may be filled later.
        changes: directories of which all may also be written, made and removed.
        files: that may be written.
        removes: directories of which files may be removed.
        devices: files that may be read, written and controlled.
        network: with which sockets.
        ports: to which TCP ports it may connect; ``None``: to every one.
        files_held: whether anything is refused that ``reads`` and the others do not name.
    """

    reads: tuple[Path, ...] = ()
    awaited: tuple[Path, ...] = ()
    changes: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()
    removes: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = ()
    network: Network = Network.NONE
    ports: tuple[int, ...] | None = ()
    files_held: bool = True


@record
class Places:
    """What a machine has for workers; see `workers.confinement.places`.

    Attributes:
        system: programs, libraries and what they are set up with.
        devices: of the system, and GPUs.
        caches: of GPU libraries.
        model: of the local model, if it is none of the Hub's.
        hub: the Hub's cache, and where links in it lead.
        token: the Hub's.
        starter: the smallest model.
        kernels: compiled with the installation.
    """

    system: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = ()
    caches: tuple[Path, ...] = ()
    model: tuple[Path, ...] = ()
    hub: tuple[Path, ...] = ()
    token: tuple[Path, ...] = ()
    starter: tuple[Path, ...] = ()
    kernels: tuple[Path, ...] = ()


def policy_for(
    role: str, settings: Settings, environ: Mapping[str, str], runtime: Path, places: Places
) -> Policy:
    """What a worker of ``role`` may do with these settings.

    Args:
        runtime: the directory of sockets and locks.
    """
    home = settings.home
    own = (runtime, home / "logs", home / TEMPORARY / role)
    base = Policy(reads=places.system, changes=own, devices=places.devices)
    if role == "gateway":  # what a frontend writes, it writes, too
        sockets = (Path(settings.gateway.socket).expanduser().parent,)
        removes = sockets if settings.gateway.socket else ()
        return replace(base, changes=(*own, home), removes=removes)
    if role == "cloud":
        provider = settings.provider
        own_address = settings.cloud.base_url or "https://"
        address = own_address if provider is None else provider.base_url
        return _sending(base, home, _ports(address, environ))
    if role == "servers":
        near = [_port(one.base_url) for one in settings.beside.values()]
        return _sending(base, home, (NAME_SERVICE, *near))
    if role == "download":
        endpoint = hub_endpoint(environ)
        # A mirror may send a request on to wherever its files are.
        known = endpoint.rstrip("/") == PUBLIC_HUB
        return replace(
            base,
            reads=(*base.reads, *places.token),
            changes=(*own, home / "download", *places.hub),
            network=Network.NAMES,
            ports=_ports(endpoint, environ) if known else None,
        )
    if role == "train":  # each training names its own files: `training_policy`
        return replace(base, files_held=False)
    if settings.server:
        server = settings.local_server()
        if server.trust != "local":
            return _sending(base, home, (NAME_SERVICE, _port(server.base_url)))
        return replace(base, network=Network.STREAMS, ports=(_port(server.base_url),))
    kept = ("quantized", "kernels", "conversations")
    return replace(
        base,
        reads=(*base.reads, *places.model, *places.starter),
        awaited=(*places.hub, home / "adapters"),
        changes=(*own, *places.caches, *places.kernels, *(home / name for name in kept)),
        files=(home / "sweep.lock",),
    )


def _sending(base: Policy, home: Path, ports: tuple[int, ...]) -> Policy:
    """What asks other machines may: it writes down what leaves."""
    from shammah.privacy.ledger import NAME as LEDGER  # what only these roles need
    from shammah.storage.chain import head_path

    files = (home / LEDGER, head_path(home / LEDGER))
    return replace(base, files=files, network=Network.NAMES, ports=tuple(sorted({*ports})))


def training_policy(
    policy: Policy, home: Path, places: Places, reads: tuple[Path, ...], writes: tuple[Path, ...]
) -> Policy:
    """What the thread of one request to a train worker may do with files.

    Args:
        policy: of the worker.
        reads: what the request names.
        writes: the same, to be written.
    """
    from shammah.learning.feedback import NAME as FEEDBACK

    given = (*places.model, *places.starter, home / FEEDBACK, *reads)
    return replace(
        policy,
        reads=(*policy.reads, *given),
        awaited=places.hub,
        changes=(*policy.changes, *places.caches, home / "adapters", home / "training", *writes),
        files_held=True,
    )


def _ports(address: str, environ: Mapping[str, str]) -> tuple[int, ...]:
    """Those of a server, and of the proxies that lead to it."""
    from shammah.settings.network import read_proxies  # with it comes ssl

    proxies = [one.url for one in read_proxies(environ).values() if not one.why]
    return tuple(sorted({NAME_SERVICE, *map(_port, (address, *proxies))}))


def _port(address: str) -> int:
    """The port of an address; 443: it has none that can be read."""
    from urllib.parse import urlsplit

    from shammah.settings.network import PORTS

    parts = urlsplit(address)
    try:
        return parts.port or PORTS.get(parts.scheme, 443)
    except ValueError:
        return 443
