"""LoRA adapters by peft, in peft's own layout on the disk."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open

from shammah.errors import ShammahError
from shammah.learning.adapters import WEIGHTS
from workers.train.lora_config import LoRAConfig


class LoRAAdapter:
    """A base model with an adapter, which can be switched off and on.

    ``model`` computes; its frozen weights are those of the base model itself, not a copy.
    """

    def __init__(self, model: peft.PeftModel, config: LoRAConfig) -> None:
        self.model: Any = model
        self.config = config
        self._enabled = True
        self.is_aimed = False
        """Whether `workers.train.aiming` has set every ``A``, which then stays as it is."""

    @classmethod
    def new(cls, base: Any, config: LoRAConfig, seed: int, base_name: str = "") -> LoRAAdapter:
        """An adapter that changes nothing yet: ``B`` is zero, ``A`` random by ``seed``.

        Raises:
            ShammahError: ``lora_config_invalid``: the model has none of the target modules.
        """
        wanted = peft.LoraConfig(
            r=config.rank,
            lora_alpha=_whole(config.alpha),
            lora_dropout=config.dropout,
            target_modules=list(config.target_modules),
            bias="none",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                with _quiet():
                    model = peft.get_peft_model(base, wanted)
            except ValueError as error:
                raise ShammahError(
                    "lora_config_invalid",
                    f"The model has no {', '.join(config.target_modules)}.",
                    "Use --target-modules with modules that the model has.",
                ) from error
        # Where the base lies on this disk is nobody's business who gets the adapter.
        model.peft_config["default"].base_model_name_or_path = base_name
        return cls(model, config)

    def enable(self) -> None:
        self.model.base_model.enable_adapter_layers()
        self._enabled = True

    def disable(self) -> None:
        """Have the base model alone, to the bit."""
        self.model.base_model.disable_adapter_layers()
        self._enabled = False

    @property
    def is_enabled(self) -> bool:
        return self._enabled

    @contextmanager
    def without(self) -> Iterator[None]:
        """The base model alone for a while; then as it was before."""
        was_enabled = self._enabled
        self.disable()
        try:
            yield
        finally:
            if was_enabled:
                self.enable()

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """All numbers of the adapter, by name, in a fixed order."""
        named = sorted(self.model.named_parameters())
        return {name: one for name, one in named if "lora_" in name}

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Those of `parameters` that a training changes."""
        fixed = ".lora_A." if self.is_aimed else " "
        return {name: one for name, one in self.parameters().items() if fixed not in name}

    def put(self, weights: Mapping[str, torch.Tensor], share: float = 1.0) -> None:
        """Have these values of `parameters`, and ``share`` of the change that they make."""
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                parameter.copy_(weights[name] * share if ".lora_B." in name else weights[name])

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of what is learnt, by peft's names."""
        found: dict[str, torch.Tensor] = get_peft_model_state_dict(
            self.model, save_embedding_layers=False
        )
        return {name: one.detach().clone() for name, one in found.items()}

    def remove(self) -> Any:
        """Take the adapter out of the base model, which is returned as it was."""
        return self.model.unload()

    def merge(self) -> Any:
        """The base model with the adapter worked into its weights; the adapter is gone."""
        return self.model.merge_and_unload()


def save_lora(adapter: LoRAAdapter, directory: Path) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, as peft does."""
    adapter.model.save_pretrained(str(directory), save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)  # a form for the Hub, with nothing in it


def load_lora(base: Any, directory: Path) -> LoRAAdapter:
    """Put the adapter in ``directory``, ours or another program's, on ``base``.

    Raises:
        ShammahError: ``adapter_invalid``: it cannot be read, is no LoRA or is for another model.
    """
    try:
        # First, and this file alone: without it peft would read a pickle.
        with safe_open(directory / WEIGHTS, framework="pt") as file:
            held = set(file.keys())
        with _quiet():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # seen to below
            model = peft.PeftModel.from_pretrained(base, str(directory), local_files_only=True)
        named = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
        if others := sorted(held ^ named):
            raise ValueError(f"only its configuration or only its weights have {others[0]}")
        found = model.peft_config["default"]
        if not isinstance(found, peft.LoraConfig):
            raise ValueError(f"it is {type(found).__name__}, not LoRA")
        config = _as_read(found, model)
    except Exception as error:  # peft raises whatever it comes across
        said = [line.strip() for line in str(error).splitlines()] or [""]
        why = said[1] if said[0].endswith(":") and said[1:] else said[0]  # under a heading
        raise ShammahError(
            "adapter_invalid",
            f"The adapter cannot be used with this model ({type(error).__name__}: {why}).",
            "Check that it is a LoRA in PEFT's layout, made for this base model.",
        ) from error
    return LoRAAdapter(model, config)


@contextmanager
def _quiet() -> Iterator[None]:
    """peft 0.21 asks transformers 5.23 for something by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def _whole(alpha: float) -> Any:
    """As other programs expect it, where it can be had so: peft says int, and takes any."""
    return int(alpha) if float(alpha).is_integer() else alpha


def _as_read(found: peft.LoraConfig, model: Any) -> LoRAConfig:
    """What of a foreign configuration ours has. Which modules an expression means is seen in the
    model that it was applied to."""
    keys = [key.split(".lora_A.")[0] for key, _ in model.named_parameters() if ".lora_A." in key]
    named = tuple(sorted({key.rpartition(".")[2] for key in keys}))
    return LoRAConfig(found.r, float(found.lora_alpha), float(found.lora_dropout), named)
