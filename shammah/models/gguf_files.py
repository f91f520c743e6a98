"""GGUF files that other programs have put on this disk: their names, and where they lie.

They are read where they are, and never copied or written to. Only names and sizes are looked at
here; what is in a file is for the worker to judge.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shammah.bus.record import record
from shammah.errors import ExitCode, ShammahError
from shammah.storage.paths import absolute, hub_cache

OLLAMA, LM_STUDIO = "ollama:", "lmstudio:"
"""What the names of their models begin with."""

HUB = "Hub"
"""The origin of what is in the Hub's cache."""

ENDING = ".gguf"

_OLLAMA_NAME = re.compile(r"(?:(?:([\w.-]+)/)?([\w.-]+)/)?([\w.-]+)(?::([\w.-]+))?", re.ASCII)
_REGISTRY, _LIBRARY = "registry.ollama.ai", "library"
_MODEL_LAYER = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MOST_MANIFEST_BYTES = 1024**2

_LM_STUDIO_NAME = re.compile(rf"([^/\0]+)/([^/\0]+)(?:/([^/\0]+{re.escape(ENDING)}))?")
_PART = re.compile(rf"(.+)-(\d{{5}})-of-(\d{{5}}){re.escape(ENDING)}")
_MOST_PARTS = 512
_MOST_NAMED = 12


@record
class GgufFile:
    """A model in a GGUF file. ``name``: for ``--model``; ``origin``: whose it is, for people;
    ``size``: bytes, with all parts."""

    name: str
    origin: str
    path: Path
    size: int


def is_app_name(wanted: str) -> bool:
    """Whether a name is one of ollama's or of LM Studio's models."""
    return wanted.startswith((OLLAMA, LM_STUDIO))


def part_names(name: str) -> list[str]:
    """The files of the model that ``name`` is a part of, the first one first."""
    found = _PART.fullmatch(name)
    if found is None or not 0 < int(found[2]) <= int(found[3]) <= _MOST_PARTS:
        return [name]
    stem, count = found[1], int(found[3])
    return [f"{stem}-{part:05}-of-{count:05}{ENDING}" for part in range(1, count + 1)]


def is_model_file(name: str) -> bool:
    """Whether a file of this name is a model, or the first part of one; no projector."""
    is_first = part_names(name)[0] == name
    return name.endswith(ENDING) and is_first and "mmproj" not in name.lower()


def check_app_name(wanted: str) -> re.Match[str]:
    """Return the parts of a name of a model of ollama or LM Studio.

    Raises:
        ShammahError: ``model_unknown``.
    """
    program, _, name = wanted.partition(":")
    known = (_OLLAMA_NAME if program == "ollama" else _LM_STUDIO_NAME).fullmatch(name)
    if known is None or any(part and not part.strip(".") for part in known.groups()):
        form = "ollama:NAME[:TAG]" if program == "ollama" else "lmstudio:PUBLISHER/REPO[/FILE.gguf]"
        why = f"{wanted!r} is not a model's name."
        hint = f"Write {form}; `shammah models list` shows them."
        raise ShammahError("model_unknown", why, hint, exit_code=ExitCode.USAGE)
    return known


def find_app_file(wanted: str, environ: Mapping[str, str]) -> Path:
    """Where a model of ollama or LM Studio lies.

    Raises:
        ShammahError: ``model_unknown``; ``model_not_found``, ``model_unclear`` or
            ``model_incomplete``, with what there is instead.
    """
    find = _find_in_ollama if wanted.startswith(OLLAMA) else _find_in_lm_studio
    return find(check_app_name(wanted), environ)


def only_gguf(directory: Path) -> Path | None:
    """The GGUF file that is the model in ``directory``; ``None``: it has none, or safetensors.

    Raises:
        ShammahError: ``model_unclear``: it has several.
    """
    if any(directory.glob("*.safetensors")):
        return None
    found = _models_in(directory)
    if len(found) < 2:
        return found[0] if found else None
    raise _unclear(str(directory), found, f"{directory}/")


def list_gguf(environ: Mapping[str, str]) -> list[GgufFile]:
    """The GGUF files of the Hub's cache, of ollama and of LM Studio, by name."""
    found = [*_in_hub_cache(environ), *_in_ollama(environ), *_in_lm_studio(environ)]
    return sorted({file.name: file for file in reversed(found)}.values(), key=lambda one: one.name)


def enumerate_names(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


# --- ollama -------------------------------------------------------------------------------


def ollama_stores(environ: Mapping[str, str]) -> list[Path]:
    """Where ollama keeps models: the user's own, and the service's."""
    own = environ.get("OLLAMA_MODELS") or "~/.ollama/models"
    return [absolute(own), Path("/usr/share/ollama/.ollama/models")]


def _find_in_ollama(known: re.Match[str], environ: Mapping[str, str]) -> Path:
    name = known[0]
    place = (known[1] or _REGISTRY, known[2] or _LIBRARY, known[3], known[4] or "latest")
    stores = ollama_stores(environ)
    for store in stores:
        manifest = store.joinpath("manifests", *place)
        try:
            blob = _blob(store, _model_layer(manifest))
            is_there = blob.is_file()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            why = f"ollama's {error.filename or manifest} cannot be read ({error.strerror})."
            raise ShammahError("model_not_found", why, "Let your user read it.") from error
        except ValueError as error:
            why = f"ollama's {manifest} cannot be used: {error}."
            raise ShammahError("model_not_found", why, f"`ollama pull {name}` may help.") from error
        if not is_there:
            why = f"ollama has no file {blob.name} of {name}, though its manifest names it."
            raise ShammahError("model_incomplete", why, f"`ollama pull {name}` fetches it.")
        return blob
    here = [file.name for file in _in_ollama(environ)]
    raise _not_found("ollama", name, stores, here)


def _in_ollama(environ: Mapping[str, str]) -> Iterator[GgufFile]:
    for store in ollama_stores(environ):
        manifests = store / "manifests"
        for manifest in _glob(manifests, "*/*/*/*"):
            host, owner, model, tag = manifest.relative_to(manifests).parts
            owner = "" if (host, owner) == (_REGISTRY, _LIBRARY) else f"{owner}/"
            host = "" if host == _REGISTRY else f"{host}/"
            with contextlib.suppress(OSError, ValueError):
                blob = _blob(store, _model_layer(manifest))
                name = f"{OLLAMA}{host}{owner}{model}:{tag}"
                yield GgufFile(name, "ollama", blob, blob.stat().st_size)


def _model_layer(manifest: Path) -> str:
    """The digest of the model's file.

    Raises:
        OSError: the manifest cannot be read.
        ValueError: it names none; the error says why.
    """
    with manifest.open("rb") as file:
        try:
            document: Any = json.loads(file.read(_MOST_MANIFEST_BYTES))
            layers = {layer["mediaType"]: layer["digest"] for layer in document["layers"]}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError("it is no manifest") from error
    digest = layers.get(_MODEL_LAYER)
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError("it names no GGUF file")
    return digest


def _blob(store: Path, digest: str) -> Path:
    return store / "blobs" / digest.replace(":", "-")


# --- LM Studio ----------------------------------------------------------------------------


def lm_studio_folders() -> list[Path]:
    """Where LM Studio keeps models, in newer and older versions."""
    return [absolute("~/.lmstudio/models"), absolute("~/.cache/lm-studio/models")]


def _find_in_lm_studio(known: re.Match[str], environ: Mapping[str, str]) -> Path:
    name, (publisher, repository, file) = known[0], known.groups()
    folders = lm_studio_folders()
    for folder in folders:
        found = _models_in(folder / publisher / repository)
        if file:
            path = folder / publisher / repository / file
            if path.is_file():
                return path
        elif len(found) == 1:
            return found[0]
        elif found:
            raise _unclear(f"{LM_STUDIO}{name}", found, f"{LM_STUDIO}{name}/")
    here = [file.name for file in _in_lm_studio(environ)]
    raise _not_found("LM Studio", name, folders, here)


def _in_lm_studio(environ: Mapping[str, str]) -> Iterator[GgufFile]:
    for folder in lm_studio_folders():
        for directory in _glob(folder, "*/*"):
            found = _models_in(directory)
            for path in found:
                name = f"{LM_STUDIO}{directory.parent.name}/{directory.name}"
                name += f"/{path.name}" if len(found) > 1 else ""
                yield GgufFile(name, "LM Studio", path, _size(path))


# --- the cache of the Hub -----------------------------------------------------------------


def _in_hub_cache(environ: Mapping[str, str]) -> Iterator[GgufFile]:
    for repository in _glob(hub_cache(environ), "models--*--*"):
        with contextlib.suppress(OSError, UnicodeDecodeError, ValueError):
            commit = (repository / "refs" / "main").read_text("ascii").strip()
            snapshot = repository / "snapshots" / commit
            model_id = repository.name.removeprefix("models--").replace("--", "/")
            for directory in (snapshot, *(one for one in _glob(snapshot, "*") if one.is_dir())):
                for path in _models_in(directory):
                    name = f"{model_id}:{path.relative_to(snapshot).as_posix()}"
                    yield GgufFile(name, HUB, path, _size(path))


# --- of all -------------------------------------------------------------------------------


def _models_in(directory: Path) -> list[Path]:
    return [path for path in _glob(directory, f"*{ENDING}") if is_model_file(path.name)]


def _glob(directory: Path, pattern: str) -> list[Path]:
    try:
        return sorted(directory.glob(pattern))
    except OSError:
        return []


def _size(path: Path) -> int:
    total = 0
    for name in part_names(path.name):
        with contextlib.suppress(OSError):
            total += os.stat(path.with_name(name)).st_size
    return total


def _not_found(program: str, name: str, places: list[Path], here: list[str]) -> ShammahError:
    looked = " and ".join(map(str, places))
    there = f"It has {enumerate_names(here)}." if here else "It has none there."
    why = f"{program} has no model {name} (looked in {looked})."
    return ShammahError("model_not_found", why, there)


def _unclear(where: str, found: list[Path], prefix: str) -> ShammahError:
    names = enumerate_names([path.name for path in found])
    hint = f"Name one of them: --model '{prefix}{found[0].name}'."
    return ShammahError("model_unclear", f"{where} holds several models: {names}.", hint)
