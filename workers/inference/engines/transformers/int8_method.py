"""Has transformers load and save models whose matrices are `Int8Linear`.

It is a quantization method of transformers' own kind: `nn.Linear` and GPT-2's `Conv1D` inside the
layers are exchanged before anything is read, and each is quantized as soon as it is read.
Embeddings and the output layer stay as they are. To import this makes the method known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from workers.inference.engines.transformers.int8_linear import GROUP, Int8Linear, frozen, quantize

METHOD = "shammah_int8"


@register_quantization_config(METHOD)
class Int8Config(QuantizationConfigMixin):
    """What a saved model's config.json says of it."""

    def __init__(self, **options: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.group = GROUP


@register_quantizer(METHOD)
class Int8Quantizer(HfQuantizer):
    """Has every matrix made an `Int8Linear` as soon as it is read."""

    def param_needs_quantization(self, model: Any, param_name: str, **options: Any) -> bool:
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, Int8Linear) and name == "weight"

    @property
    def quantized_element_size(self) -> float:
        return 1 + 2 / GROUP

    def _process_model_before_weight_loading(self, model: Any, **options: Any) -> Any:
        kept = self.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
        for name, module in list(model.named_modules()):
            if should_convert_module(name, kept) and (
                type(module) is nn.Linear or isinstance(module, Conv1D)
            ):
                model.set_submodule(name, _replacement(module))
        return model

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize()

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


class _Quantize(ConversionOps):
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **options: Any,
    ) -> dict[str, Any]:
        [(name, value)] = input_dict.items()
        tensor = value[0] if isinstance(value, list) else value
        module, _ = get_module_from_name(options["model"], name)
        if module.transposed:
            tensor = tensor.T
        if tensor.shape != module.weight.shape:
            raise ValueError(f"{name} is {list(tensor.shape)}, not {list(module.weight.shape)}")
        weight, scale = quantize(tensor)
        place = name.removesuffix("weight")
        return {name: frozen(weight), f"{place}scale": frozen(scale)}


def _replacement(module: Any) -> Int8Linear:
    """For a module without weights yet."""
    transposed = isinstance(module, Conv1D)
    inputs, outputs = module.weight.shape if transposed else reversed(module.weight.shape)
    with torch.device("meta"):
        made = Int8Linear(inputs, outputs, bias=module.bias is not None)
        if made.bias is not None:
            made.bias.data = made.bias.data.to(module.bias.dtype)
    made.transposed = transposed
    return made
