"""Which adapters of peft's are plain LoRA, as every engine computes it. Pure."""

from __future__ import annotations

import re
from typing import Any

KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
"""The name of a tensor: its module in the base model, and which of the two matrices it is."""

_INNOCENT = frozenset(
    (
        "task_type auto_mapping peft_version base_model_name_or_path revision "
        "inference_mode r target_modules exclude_modules lora_alpha lora_dropout "
        "fan_in_fan_out layers_to_transform layers_pattern rank_pattern alpha_pattern "
        "use_rslora megatron_core qalora_group_size loftq_config eva_config "
        "runtime_config"
    ).split()
)
"""What an `adapter_config.json` may say without another computation."""

_PLAIN = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, "gaussian", "eva")}
"""What else it may say, if it says this. Other ways to begin change the base model, too."""


def describe_misfit(config: dict[str, Any]) -> str:
    """Why an adapter with this `adapter_config.json` cannot be used, as the end of a sentence;
    empty: it can."""
    for field, allowed in _PLAIN.items():
        value = config.get(field, allowed[0])
        if value and value not in allowed:
            return f"its {field} is {value!r:.60}"
    others = [field for field in config if config[field] and field not in _INNOCENT | _PLAIN.keys()]
    return f"it uses {', '.join(sorted(others))}" if others else ""
