"""What an adapter looks like. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shammah.errors import ExitCode, ShammahError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
MODULES = (*ATTENTION, *MLP)

MOST_RANK = 256


@dataclass(frozen=True, slots=True)
class LoRAConfig:
    """A low-rank change ``W + (alpha / rank) B A`` of the target modules (Hu et al. 2021,
    arXiv:2106.09685).

    ``dropout`` is of the input of ``A``, from 0 up to below 1.

    Raises:
        ShammahError: ``lora_config_invalid``.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        if type(self.rank) is not int or not 1 <= self.rank <= MOST_RANK:
            raise _invalid(f"rank must be a whole number from 1 to {MOST_RANK}, not {self.rank!r}")
        if not _is_number(self.alpha) or not 0 < self.alpha <= 4 * MOST_RANK:
            raise _invalid(f"alpha must be above 0 and at most {4 * MOST_RANK}, not {self.alpha!r}")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise _invalid(f"dropout must be at least 0 and below 1, not {self.dropout!r}")
        named = self.target_modules
        if not named or len(set(named)) != len(named):
            raise _invalid("target_modules must name each module once, and one at least")
        if strange := [one for one in named if one not in MODULES]:
            known = ", ".join(MODULES)
            raise _invalid(f"target_modules has no {strange[0]!r:.40}; there are {known}")

    @property
    def scale(self) -> float:
        """What the low-rank product is multiplied with."""
        return self.alpha / self.rank


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _invalid(why: str) -> ShammahError:
    return ShammahError(
        "lora_config_invalid",
        f"This is not a valid adapter: {why}.",
        "The usual one has rank 16, alpha 32, dropout 0 and q_proj,v_proj.",
        exit_code=ExitCode.USAGE,
    )
