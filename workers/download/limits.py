"""How long, how many, how much: every bound of a download in one place."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Limits:
    """Times are seconds.

    Attributes:
        connections: open at once, for all downloads together.
        segment_bytes: what one request for a part of a big file asks for.
        connect_s: for a connection to be made.
        metadata_s: for an answer about a model to begin.
        stall_s: without a byte before reconnecting.
        metadata_attempts: to learn about a model.
        attempts: in a row that bring no byte of a segment, and the download fails.
        backoff_s: the first wait between attempts is up to this long; each further one up to
            twice as long as the one before.
        backoff_max_s: no wait is longer.
        retry_after_max_s: the longest wait that a server may ask for.
        disk_reserve: bytes to leave free on the disk.
    """

    connections: int = 8
    segment_bytes: int = 16 * MIB
    connect_s: float = 10.0
    metadata_s: float = 15.0
    stall_s: float = 30.0
    metadata_attempts: int = 4
    attempts: int = 8
    backoff_s: float = 1.0
    backoff_max_s: float = 30.0
    retry_after_max_s: float = 120.0
    disk_reserve: int = 256 * MIB
