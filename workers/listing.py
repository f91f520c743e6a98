"""What a repository holds, and which of it a load needs. Pure."""

from __future__ import annotations

import hashlib
import re
from typing import Protocol

from shammah.bus.record import record
from shammah.errors import ShammahError
from shammah.models.gguf_files import ENDING, enumerate_names, part_names

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_MODEL_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_REVISION = re.compile(r"[\w./+@-]+", re.ASCII)
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_WANTED = re.compile(
    r"""[^/]+\.(?:json|jinja|model|tiktoken|txt)
    | additional_chat_templates/[^/]+\.jinja
    | (?:LICEN[CS]E|NOTICE|README|USE_POLICY)[^/]*
    | \.gitattributes""",
    re.VERBOSE,
)
"""Configuration, tokenizer, chat templates and what one may do with the model; never code."""
_UNWANTED = re.compile(r"(?:pytorch_model|tf_model|flax_model)[^/]*\.index\.json")

CONFIG = "config.json"


class Digest(Protocol):
    """The part of a hashlib object that is used."""

    def update(self, data: bytes | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


@record
class RemoteFile:
    """One file of a repository.

    Attributes:
        path: relative, with ``/``.
        size: bytes.
        sha256: of the content, for files in large file storage.
        git_sha1: git's hash of the content; for a file in large file storage, of the pointer
            to it. ``None`` where it is not known.
        xet_hash: of no use here; other programs want it in their list of the tree.
    """

    path: str
    size: int
    sha256: str | None
    git_sha1: str | None
    xet_hash: str | None = None

    @property
    def etag(self) -> str:
        """The hash that the content must have, which also names the blob in the cache."""
        return self.sha256 or self.git_sha1 or ""

    def digest(self) -> Digest:
        """A fresh hash object whose result for the right content is `etag`."""
        if self.sha256:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


@record
class RepositoryListing:
    """A model repository at one commit. ``licence`` is empty where none is given."""

    model_id: str
    revision: str
    licence: str
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def check_names(model_id: str, revision: str) -> None:
    """Refuse what can be no model and no revision, before it becomes part of a path.

    Raises:
        ShammahError: ``model_not_found`` or ``revision_not_found``.
    """
    if not _MODEL_ID.fullmatch(model_id) or "--" in model_id or ".." in model_id:
        message = f"{model_id!r} is not a model's name (owner/name)."
        raise ShammahError("model_not_found", message, "Check its name.")
    if not _REVISION.fullmatch(revision) or {"", ".", ".."} & set(revision.split("/")):
        message = f"{revision!r} is not a revision's name."
        raise ShammahError("revision_not_found", message, "Name a branch, a tag or a commit.")


def check_file(file: RemoteFile) -> None:
    """Refuse what must not become a path, or cannot be verified.

    Raises:
        ShammahError: ``hub_error``.
    """
    parts = file.path.split("/")
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[\\:\x00-\x1f]", file.path):
        raise _bad_listing(f"names a file {file.path!r}, which would leave the model's directory")
    if type(file.size) is not int or file.size < 0:
        raise _bad_listing(f"gives {file.size!r} as the size of {file.path}")
    good = _SHA256.fullmatch(file.sha256) if file.sha256 else _SHA1.fullmatch(file.git_sha1 or "")
    if not good:
        raise _bad_listing(f"gives no usable hash for {file.path} ({file.etag!r})")


def needed(listing: RepositoryListing, gguf: str = "") -> RepositoryListing:
    """``listing`` with only the files that loading the model takes.

    Args:
        listing: of the whole repository.
        gguf: the GGUF file that is the model; its further parts are needed, too.

    Raises:
        ShammahError: ``model_unsupported``: there are no safetensors, or no configuration;
            ``model_not_found``: there is no such GGUF file.
    """
    paths = {file.path for file in listing.files}
    ggufs = sorted(path for path in paths if path.endswith(ENDING))
    if gguf:
        return _gguf(listing, gguf, ggufs)
    if ggufs and not any(path.endswith(".safetensors") for path in paths):
        raise ShammahError(
            "model_unsupported",
            f"{listing.model_id} holds only GGUF files, of which one must be named.",
            f"For example {listing.model_id}:{ggufs[0]}; it has {enumerate_names(ggufs)}.",
        )
    if CONFIG not in paths:
        raise ShammahError(
            "model_unsupported",
            f"{listing.model_id} has no {CONFIG}: it is not a model that can be loaded.",
            "Use the repository of a transformers model (for an adapter: of its base model).",
        )
    weights = _weights(paths)
    if not weights:
        raise ShammahError(
            "model_unsupported",
            f"{listing.model_id} has no safetensors files, and no others are loaded.",
            "Choose a model that is published as safetensors.",
        )
    chosen = [
        file
        for file in listing.files
        if file.path in weights
        or (_WANTED.fullmatch(file.path) and not _UNWANTED.fullmatch(file.path))
    ]
    return RepositoryListing(listing.model_id, listing.revision, listing.licence, tuple(chosen))


def _gguf(listing: RepositoryListing, gguf: str, present: list[str]) -> RepositoryListing:
    """``listing`` with the parts of one file, under that file's name."""
    parts = part_names(gguf)
    lost = next((part for part in parts if part not in present), None)
    if lost is not None:
        has = f"It has {enumerate_names(present)}." if present else "It has no GGUF files."
        raise ShammahError("model_not_found", f"{listing.model_id} has no file {lost}.", has)
    name = f"{listing.model_id}:{gguf}"
    files = tuple(file for file in listing.files if file.path in parts)
    return RepositoryListing(name, listing.revision, listing.licence, files)


def _weights(paths: set[str]) -> set[str]:
    """One set of weights: some repositories publish the same ones again under other names."""
    if "model.safetensors" in paths:
        return {"model.safetensors"}
    named = {path for path in paths if _WEIGHTS.fullmatch(path)}
    return named or {path for path in paths if re.fullmatch(r"[^/]+\.safetensors", path)}


def _bad_listing(why: str) -> ShammahError:
    return ShammahError(
        "hub_error", f"The Hub {why}.", "Check HF_ENDPOINT, or tell the owners of the model."
    )
