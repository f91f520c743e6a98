"""Finds a LoRA adapter in the home and reads it into numpy, or says why it cannot be used.

Only what every engine computes is read: two narrow matrices added to a linear layer. What peft can
do beyond that changes the answer in other ways, so it is refused rather than left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shammah.bus.messages import Ready
from shammah.bus.record import record
from shammah.errors import ShammahError
from shammah.learning.adapters import CONFIG, WEIGHTS, AdapterEntry, AdapterStore, digest_of
from workers.adapter_kind import KEY, describe_misfit
from workers.inference.packages.safetensors_header import HeaderError, Tensor, read_header

_LARGEST_SCALE = 1e6
"""Of what an adapter adds; a larger one makes infinities of its numbers."""

_STORED = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}

HINT = "Answer without it with `/adapter off`, or see `shammah adapters list`."


@record
class LowRank:
    """What is added to a linear layer: ``y += up (down x)``.

    Attributes:
        down: (rank, inputs), float32.
        up: (outputs, rank), float32, times the adapter's scale.
    """

    down: NDArray[np.float32]
    up: NDArray[np.float32]

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


@record
class Adapter:
    """A whole adapter. ``layers``: by the names of the base model's modules; ``key``: see
    `key_of`."""

    key: str
    name: str
    layers: Mapping[str, LowRank]

    @property
    def bytes(self) -> int:
        """Of its numbers."""
        return sum(one.down.nbytes + one.up.nbytes for one in self.layers.values())

    def check_sizes(self, module: str, inputs: int, outputs: int) -> None:
        """Raise ``adapter_wrong_base`` where the model's ``module`` is of other sizes."""
        down, up = self.layers[module].down, self.layers[module].up
        if (down.shape[1], up.shape[0]) != (inputs, outputs):
            both = f"{down.shape[1]}x{up.shape[0]}, but this model's is {inputs}x{outputs}"
            raise wrong_base(self.name, f"its {module} is {both}")


def find_adapter(home: Path, name: str, ready: Ready) -> AdapterEntry:
    """Return the adapter ``name`` of the model that is ``ready``.

    Raises:
        ShammahError: ``adapter_not_found`` or ``adapter_wrong_base``.
    """
    entry = AdapterStore(home).get(name)
    if entry.base_model != ready.model:
        raise wrong_base(name, f"it was made for {entry.base_model}, not for {ready.model}")
    if entry.base_revision and ready.revision and entry.base_revision != ready.revision:
        made, here = entry.base_revision[:12], ready.revision[:12]
        raise wrong_base(name, f"it was made for revision {made} of {ready.model}, not for {here}")
    return entry


def key_of(entry: AdapterEntry) -> str:
    """Return a key for these numbers of the adapter: other numbers have another key.

    Raises:
        ShammahError: ``adapter_damaged``.
    """
    try:
        facts = [(entry.directory / file).stat() for file in (CONFIG, WEIGHTS)]
    except OSError as error:
        raise damaged(entry.name, f"its files cannot be read ({error.strerror})") from error
    times = "-".join(f"{one.st_mtime_ns:x}.{one.st_size:x}" for one in facts)
    return f"{entry.name}@{entry.digest[:16]}-{times}"


def read_adapter(entry: AdapterEntry, key: str) -> Adapter:
    """Read and check it all.

    Raises:
        ShammahError: ``adapter_damaged`` or ``adapter_unsupported``.
    """
    config = _read_config(entry)
    if why := describe_misfit(config):
        raise unsupported(entry.name, why)
    path = entry.directory / WEIGHTS
    try:
        if entry.digest and digest_of(path) != entry.digest:
            raise damaged(entry.name, f"{WEIGHTS} is not what was saved")
        tensors = _read_tensors(entry.name, path)
    except (HeaderError, OSError) as error:
        raise damaged(entry.name, f"{WEIGHTS}: {error}") from error
    found: dict[str, dict[str, NDArray[np.float32]]] = {}
    for tensor_key, numbers in tensors.items():
        match = KEY.fullmatch(tensor_key)
        if match is None or numbers.ndim != 2:
            raise unsupported(entry.name, f"it holds {tensor_key}, which is not a LoRA matrix")
        found.setdefault(match[1], {})[match[2]] = numbers
    if not found:
        raise damaged(entry.name, f"{WEIGHTS} is empty")
    layers = {module: _low_rank(entry.name, config, module, found[module]) for module in found}
    return Adapter(key, entry.name, layers)


def _read_config(entry: AdapterEntry) -> dict[str, Any]:
    try:
        config = json.loads((entry.directory / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(entry.name, f"{CONFIG} cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise damaged(entry.name, f"{CONFIG} is not a JSON object")
    return config


def _low_rank(
    name: str, config: dict[str, Any], module: str, both: dict[str, NDArray[np.float32]]
) -> LowRank:
    if len(both) < 2:
        raise damaged(name, f"{module} lacks one of its two matrices")
    down, up = both["A"], both["B"]
    if down.shape[0] != up.shape[1] or not down.size or not up.size:
        raise damaged(
            name, f"{module} has matrices {down.shape} and {up.shape}, which do not match"
        )
    if not (np.isfinite(down).all() and np.isfinite(up).all()):
        raise damaged(name, f"{module} holds NaN or infinite numbers")
    return LowRank(down, up * np.float32(_scale(name, config, module, down.shape[0])))


def _scale(name: str, config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / rank (https://arxiv.org/abs/2106.09685, 4.1), or alpha / sqrt(rank) if ``use_rslora``
    (https://arxiv.org/abs/2312.03732). A pattern is matched as peft's ``get_pattern_key`` does."""
    alpha: Any = config.get("lora_alpha")
    patterns = config.get("alpha_pattern") or {}
    try:
        for pattern in patterns:
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = patterns[pattern]
                break
        scale = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
        if not abs(scale) < _LARGEST_SCALE:  # NaN, too
            raise ValueError(f"lora_alpha is {alpha!r:.40}")
        return scale
    except (TypeError, ValueError, OverflowError, re.error) as error:
        raise damaged(name, f"{CONFIG} gives no scale ({error})") from error


def _read_tensors(name: str, path: Path) -> dict[str, NDArray[np.float32]]:
    data = np.fromfile(path, np.uint8)
    return {tensor.name: _numbers(name, tensor, data) for tensor in read_header(path)}


def _numbers(name: str, tensor: Tensor, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    if tensor.dtype not in _STORED:
        raise unsupported(name, f"{tensor.name} is stored as {tensor.dtype}")
    stored = data[tensor.begin : tensor.end].view(_STORED[tensor.dtype]).reshape(tensor.shape)
    if tensor.dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def damaged(name: str, why: str) -> ShammahError:
    return ShammahError("adapter_damaged", f"The adapter {name} is damaged: {why}.", HINT)


def unsupported(name: str, why: str) -> ShammahError:
    return ShammahError(
        "adapter_unsupported", f"The adapter {name} cannot be used here: {why}.", HINT
    )


def wrong_base(name: str, why: str) -> ShammahError:
    return ShammahError(
        "adapter_wrong_base", f"The adapter {name} belongs to another model: {why}.", HINT
    )
