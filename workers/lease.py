"""Who uses a worker, and when nobody has for long enough. Pure: the clock is passed in.

A frontend attaches, renews its lease with pings, and detaches; one that was killed just stops
pinging. When the last lease is gone the ``keep_alive`` clock starts; when that has run out
the worker ends, memory and all.
"""

from __future__ import annotations

from dataclasses import dataclass

from shammah.bus.messages import ClientInfo

LEASE_S = 3.0
"""A frontend killed with SIGKILL lapses within this; frontends ping every third of it."""

FIRST_LEASE_S = 10.0
"""A worker that nobody has attached to yet waits at least this long, whatever ``keep_alive``
says: the frontend that started it needs a moment to connect."""


STILL_S = 1.0
"""The worker looks at its leases several times in this. Where it did not, it has stood still, and
perhaps the whole machine: nobody was able to ping, and that time does not count."""


@dataclass(slots=True)
class _Lease:
    client: ClientInfo
    until: float


class LeaseTable:
    """The leases of one worker.

    Args:
        keep_alive: seconds to stay without a lease; 0 ends at once, negative never.
        now: the present monotonic time, seconds.
    """

    def __init__(self, keep_alive: float, now: float) -> None:
        self.keep_alive = keep_alive
        self._leases: dict[bytes, _Lease] = {}
        self._unused_since = self._looked = now
        self._ever_attached = False

    def attach(self, peer: bytes, client: ClientInfo, now: float) -> None:
        self._leases[peer] = _Lease(client, now + LEASE_S)
        self._ever_attached = True

    def renew(self, peer: bytes, now: float) -> bool:
        """False if ``peer`` holds no lease (it lapsed, or this worker is a newer one)."""
        lease = self._leases.get(peer)
        if lease is None:
            return False
        lease.until = now + LEASE_S
        return True

    def detach(self, peer: bytes, now: float) -> bool:
        if self._leases.pop(peer, None) is None:
            return False
        self._unused_since = now
        return True

    def lapse(self, now: float) -> list[bytes]:
        """Drop the leases that have run out and name their holders. Call it all the time."""
        still, self._looked = now - self._looked, now
        if still > STILL_S:
            for lease in self._leases.values():
                lease.until = max(lease.until, min(lease.until + still, now + LEASE_S))
        lapsed = [peer for peer, lease in self._leases.items() if lease.until <= now]
        for peer in lapsed:
            self.detach(peer, now)
        return lapsed

    def peers(self) -> list[bytes]:
        return list(self._leases)

    def others(self, peer: bytes) -> tuple[ClientInfo, ...]:
        """All but ``peer``, and but what the same frontend has given back a moment ago: its
        farewell comes by another connection, and may be read after its next Hello."""
        own = self._leases.get(peer)
        return tuple(
            lease.client
            for key, lease in self._leases.items()
            if key != peer and (own is None or lease.client != own.client)
        )

    def __len__(self) -> int:
        return len(self._leases)

    def expired(self, now: float) -> bool:
        """Return whether the worker should end because nobody uses it."""
        if self._leases or self.keep_alive < 0:
            return False
        patience = self.keep_alive if self._ever_attached else max(self.keep_alive, FIRST_LEASE_S)
        return now - self._unused_since >= patience
