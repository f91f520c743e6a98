"""The text of a model's config.json, without the model."""

from __future__ import annotations

import contextlib
import logging

from shammah.errors import ShammahError
from workers.download.hub import Hub
from workers.download.layout import RepositoryCache
from workers.listing import CONFIG, RemoteFile, RepositoryListing

log = logging.getLogger(__name__)

LIMIT_BYTES = 256 * 1024
"""The longest configurations of models that are published have some 20 kB."""


def config_text(repository: RepositoryCache, listing: RepositoryListing, hub: Hub) -> str:
    """From the cache, else from the Hub; empty if it cannot be had, or is not what was listed.

    What is fetched is not kept: a download verifies and keeps its files together.
    """
    file = next((one for one in listing.files if one.path == CONFIG), None)
    if file is None or file.size > LIMIT_BYTES:
        return ""
    try:
        return _cached(repository, file) or _fetched(hub, listing, file)
    except ShammahError as error:
        log.warning("no configuration of %s: %s", listing.model_id, error)
        return ""


def _cached(repository: RepositoryCache, file: RemoteFile) -> str:
    content = b""
    with contextlib.suppress(OSError):
        content = repository.blob(file).read_bytes()
    return _checked(content, file)


def _fetched(hub: Hub, listing: RepositoryListing, file: RemoteFile) -> str:
    content = hub.read(listing.model_id, listing.revision, file)
    text = _checked(content, file)
    if not text:
        log.warning("the configuration of %s is not the one that was listed", listing.model_id)
    return text


def _checked(content: bytes, file: RemoteFile) -> str:
    """``content`` as text, if it is the file's."""
    digest = file.digest()
    digest.update(content)
    if len(content) != file.size or digest.hexdigest() != file.etag:
        return ""
    return content.decode("utf-8", "replace")
