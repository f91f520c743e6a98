"""Every engine there is, the preferred one first. What chooses among engines reads only this."""

from __future__ import annotations

from collections.abc import Mapping

from workers.inference.engine import EngineSpec
from workers.inference.engines.llamacpp.spec import LLAMACPP
from workers.inference.engines.mlx.spec import MLX
from workers.inference.engines.native.spec import NATIVE
from workers.inference.engines.transformers.spec import TRANSFORMERS
from workers.inference.engines.vllm.spec import VLLM

ENGINES: Mapping[str, EngineSpec] = {
    engine.name: engine for engine in (MLX, NATIVE, LLAMACPP, VLLM, TRANSFORMERS)
}
