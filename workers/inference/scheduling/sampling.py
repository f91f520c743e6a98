"""What the model's ``generation_config.json`` (or GGUF file) says, and what a request makes of it.

Shared by every engine: an engine is given plain numbers and stop tokens, and never asks where
they come from.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from shammah.bus.messages import Sampling
from shammah.bus.record import record
from shammah.errors import ShammahError
from shammah.models.gguf_files import part_names
from workers.inference.packages.gguf import read_header

log = logging.getLogger(__name__)

GENERATION_CONFIG = "generation_config.json"
CONFIG = "config.json"

_GGUF_SAMPLING = {
    "temperature": "temp",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "penalty_repeat",
    "min_p": "min_p",
}
_NUMBERS = ("temperature", "top_p", "top_k", "repetition_penalty", "min_p", "presence_penalty")
_GGUF_STOPS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Ends of a text, of a turn, and of a message to a tool."""

MAX_SEED = 2**63 - 1

LEAST_TEMPERATURE = 1e-5
"""Below it the most likely token has all the probability, and dividing by it overflows."""


@record
class SamplingPlan:
    """How to choose each token, all questions settled.

    ``temperature`` of 0 chooses the most likely token. ``top_k`` and ``min_p`` of 0 and ``top_p``
    of 1 leave every token in. ``seed`` of ``None``: another answer each time.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0


@record
class GenerationDefaults:
    """What the model's authors recommend. Without a file: the most likely token.

    ``plan`` fills what a request leaves open; ``stop_ids`` end an answer.
    """

    plan: SamplingPlan = SamplingPlan()
    stop_ids: frozenset[int] = frozenset()


def read_defaults(directory: Path) -> GenerationDefaults:
    """The defaults of the model in ``directory``, or of a GGUF file; both files of a directory say
    which tokens end an answer.

    They are advice: what of them cannot be used is left out, and the log says so.
    """
    if directory.is_file():
        return _of_gguf(directory)
    own = _read(directory / GENERATION_CONFIG)
    # As transformers reads it: without `do_sample` the numbers below it do not count.
    # 50 is transformers' own default, for which the authors' numbers were chosen.
    plan = SamplingPlan(temperature=1.0 if own.get("do_sample") else 0.0, top_k=50)
    for name in _NUMBERS:
        if name != "temperature" or own.get("do_sample"):
            plan = _take_over(plan, name, own.get(name))
    ids = [_stop_ids(own, GENERATION_CONFIG), _stop_ids(_read(directory / CONFIG), CONFIG)]
    return GenerationDefaults(plan, frozenset().union(*ids))


def _of_gguf(path: Path) -> GenerationDefaults:
    """What the header says; without a word on sampling, the most likely token.

    Raises:
        ShammahError: it cannot be read.
    """
    header = read_header(path.with_name(part_names(path.name)[0]))
    plan = SamplingPlan()
    for name, key in _GGUF_SAMPLING.items():
        for value in header.numbers(f"general.sampling.{key}")[:1]:
            # In float32, 0.7 is 0.699999988.
            plan = _take_over(plan, name, round(value, 6) if isinstance(value, float) else value)
    ids = [one for key in _GGUF_STOPS for one in header.numbers(f"tokenizer.ggml.{key}")[:1]]
    return GenerationDefaults(plan, frozenset(one for one in ids if type(one) is int and one >= 0))


def _take_over(plan: SamplingPlan, name: str, value: Any) -> SamplingPlan:
    """``plan`` with the authors' ``value``, if it is one."""
    if value is None:
        return plan
    if name == "top_k" and value == -1:  # as other engines write that all tokens stay in
        value = 0
    try:
        if type(value) not in (int, float):
            raise ValueError
        return plan_sampling(Sampling(**{name: value}), plan)
    except (ShammahError, ValueError, OverflowError):
        log.warning("ignoring the model's %s %.40r", name, value)
        return plan


def plan_sampling(asked: Sampling, defaults: SamplingPlan) -> SamplingPlan:
    """``asked`` with the gaps filled.

    Raises:
        ShammahError: ``sampling_invalid``, naming the value, or ``schema_not_enforced``.
    """
    temperature, top_p, top_k, penalty, min_p, presence = (
        getattr(defaults if getattr(asked, name) is None else asked, name) for name in _NUMBERS
    )
    _check("temperature", temperature, 0 <= temperature < math.inf, "0 or more")
    _check("top_p", top_p, 0 < top_p <= 1, "more than 0 and at most 1")
    _check("top_k", top_k, top_k >= 0, "0 (off) or more")
    _check("repetition_penalty", penalty, 0 < penalty < math.inf, "more than 0")
    _check("min_p", min_p, 0 <= min_p <= 1, "from 0 (off) to 1")
    _check("presence_penalty", presence, abs(presence) < math.inf, "a number")
    if temperature < LEAST_TEMPERATURE:
        temperature = 0.0
    seed = asked.seed
    _check("seed", seed, seed is None or 0 <= seed <= MAX_SEED, f"from 0 to {MAX_SEED}")
    return SamplingPlan(
        float(temperature),
        float(top_p),
        int(top_k),
        float(penalty),
        seed=seed,
        min_p=float(min_p),
        presence_penalty=float(presence),
    )


def _check(name: str, value: object, fits: bool, expected: str) -> None:
    if not fits:
        raise ShammahError(
            "sampling_invalid",
            f"{name} is {value}, but must be {expected}.",
            f"Leave out {name} to use the model's default.",
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("ignoring %s: it cannot be read (%s)", path.name, error)
        return {}
    if not isinstance(document, dict):
        log.warning("ignoring %s: it is not a JSON object", path.name)
        return {}
    return document


def _stop_ids(document: dict[str, Any], name: str) -> frozenset[int]:
    value = document.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    found = [int(one) if isinstance(one, str) and one.isdecimal() else one for one in ids]
    known = frozenset(one for one in found if type(one) is int and one >= 0)
    if len(known) < len(set(map(repr, ids))):
        log.warning("%s: ignoring a part of eos_token_id %.40r", name, value)
    return known
