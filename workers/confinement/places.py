"""Where things are on this machine that workers need."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from glob import glob
from pathlib import Path

from shammah.models.catalogue import is_of_hub, starter_directory
from shammah.models.gguf_files import (
    LM_STUDIO,
    OLLAMA,
    lm_studio_folders,
    ollama_stores,
    part_names,
)
from shammah.storage.paths import absolute, hub_cache
from workers.confinement.policy import Places

_SYSTEM = (
    "/usr /lib /lib32 /lib64 /libx32 /bin /sbin /opt /etc /proc /sys /nix/store /gnu/store "
    "/run/opengl-driver /run/nscd /var/lib/sss /var/lib/ca-certificates"
).split()
_DEVICES = (
    "/dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/nvidia* /dev/nvhost* "
    "/dev/nvmap /dev/dri /dev/kfd /dev/dxg /dev/accel /tmp/nvidia-mps"
).split()
_VARIABLES = (
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "OPENSSL_CONF",
    "CUDA_HOME",
    "CUDA_PATH",
    "ROCM_PATH",
)
_SEARCHED = ("LD_LIBRARY_PATH", "LD_PRELOAD")


def look(wanted: str, environ: Mapping[str, str], *, certificates: bool = False) -> Places:
    """Everything but what lies in the home.

    Args:
        wanted: the model; empty: any of the Hub's.
        environ: of this process.
        certificates: look for those that servers are checked with, too.
    """
    hub = (hub_cache(environ),) if not wanted or is_of_hub(wanted) else ()
    starter = starter_directory()
    return Places(
        system=(*_system(environ), *(_certificates() if certificates else ())),
        devices=tuple(Path(found) for pattern in _DEVICES for found in glob(pattern)),
        caches=tuple(_caches(environ)),
        model=tuple(model_places(wanted, environ)),
        hub=(*hub, *(link for cache in hub for link in links_from(cache))),
        token=tuple(_token(environ)),
        starter=(starter, *links_from(starter)),
        kernels=tuple(_kernels()),
    )


def model_places(wanted: str, environ: Mapping[str, str]) -> list[Path]:
    """Where a model lies that is not the Hub's; nothing for one of the Hub's."""
    if wanted.startswith(OLLAMA):
        return ollama_stores(environ)
    if wanted.startswith(LM_STUDIO):
        return lm_studio_folders()
    return tree(Path(wanted)) if os.path.isabs(wanted) else []


def tree(path: Path) -> list[Path]:
    """A directory with all that links in it lead to, or a file with its other parts."""
    if path.is_dir():
        return [path, *links_from(path)]
    return [path.with_name(name) for name in part_names(path.name)]


def links_from(directory: Path) -> list[Path]:
    """Where links in a directory lead, at any depth, that lead out of it."""
    found: dict[str, None] = {}
    rooms = [os.path.realpath(directory)]
    while rooms:
        room = rooms.pop()
        for link in _links(room):
            aim = os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(link)))
            if aim.startswith(f"{room}/"):
                continue  # if it is a link itself, it is met
            aim = os.path.realpath(link)
            if not any(aim == one or aim.startswith(f"{one}/") for one in (room, *found)):
                found[aim] = None
                rooms.append(aim)
    return [Path(one) for one in found]


def _links(directory: str) -> Iterator[str]:
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_symlink():
                    yield entry.path
                elif entry.is_dir(follow_symlinks=False):
                    yield from _links(entry.path)
    except OSError:
        return


def _system(environ: Mapping[str, str]) -> Iterator[Path]:
    yield from map(Path, _SYSTEM)
    # A file that is replaced loses what it was allowed; its directory keeps it.
    yield Path(os.path.realpath("/etc/resolv.conf")).parent
    named = [environ.get(name, "") for name in _VARIABLES]
    for name in _SEARCHED:
        named += environ.get(name, "").split(":")
    yield from (absolute(name) for name in named if name)
    yield from map(Path, {sys.prefix, sys.base_prefix, sys.exec_prefix, *filter(None, sys.path)})


def _certificates() -> Iterator[Path]:
    import ssl  # what workers without a network need not load

    found = ssl.get_default_verify_paths()
    yield from (Path(found.openssl_cafile), Path(found.openssl_capath))


def _caches(environ: Mapping[str, str]) -> Iterator[Path]:
    """Of what GPU libraries compile. They are made where a GPU is."""
    if not glob("/dev/nvidia*") and not os.path.exists("/dev/kfd"):
        return
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    named = (
        environ.get("CUDA_CACHE_PATH") or "~/.nv",
        environ.get("TRITON_CACHE_DIR") or "~/.triton",
    )
    kernels = environ.get("PYTORCH_KERNEL_CACHE_PATH") or f"{cache}/torch/kernels"
    yield from (absolute(path) for path in (*named, kernels, "/dev/shm"))


def _token(environ: Mapping[str, str]) -> Iterator[Path]:
    home = environ.get("HF_HOME") or f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    yield absolute(environ.get("HF_TOKEN_PATH") or f"{home}/token")
    yield absolute(home) / "stored_tokens"


def _kernels() -> Iterator[Path]:
    shared = Path(sys.prefix, "share", "shammah")
    if os.access(shared, os.W_OK):
        yield shared / "kernels"
