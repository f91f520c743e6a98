"""The losses of a training as a picture; needs matplotlib, which most people do without."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from shammah.bus.training import LossCurve, Trained
from shammah.errors import ExitCode, ShammahError
from shammah.storage.files import new_file

NAME = "loss.png"
"""The picture in the adapter's own directory."""

INSTALL = "pip install 'shammah[plots]'"

_STEPS, _MEAN, _HELD_OUT = "#9db4c8", "#44617b", "#c2410c"
_MANY = 40
"""With more steps than this their mean over a tenth of them tells more than each."""


def can_plot() -> bool:
    """Whether matplotlib is there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def check_plot(path: Path) -> None:
    """Refuse before the training what could not be drawn after it.

    Raises:
        ShammahError: ``plots_missing``, ``plot_unwritable``.
    """
    if not path.absolute().parent.is_dir():
        raise ShammahError(
            "plot_unwritable",
            f"{path} cannot be written (there is no directory {path.parent}).",
            "Name another file.",
            exit_code=ExitCode.USAGE,
        )
    if not can_plot():
        raise ShammahError(
            "plots_missing",
            "The plot needs matplotlib, which is not installed.",
            f"Install it with {INSTALL}, or leave --plot away.",
            exit_code=ExitCode.USAGE,
        )


def write_plot(trained: Trained, path: Path) -> None:
    """Draw the loss of every step and the held-out losses, whole or not at all.

    Raises:
        ShammahError: ``plot_unwritable``.
    """
    figure = _draw(trained)
    try:
        with new_file(path, sync=False) as draft:
            figure.savefig(draft, dpi=120, format="png", metadata={"Software": None})
    except OSError as error:
        raise ShammahError(
            "plot_unwritable",
            f"{path} cannot be written ({error.strerror}); the adapter is kept.",
            "Name another file.",
        ) from error


def _draw(trained: Trained) -> Any:
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its cache of fonts
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_curve(axes, trained.curve)
    kept = f"{trained.figures.sure:.1%} of sure general choices kept"
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats a token)")
    title = f"{trained.adapter} on {trained.model}"
    axes.set_title(title, loc="left", fontweight="bold", parse_math=False)
    axes.set_title(f"{trained.verdict}; {kept}", loc="right", fontsize=10)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(axis="y", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _draw_curve(axes: Any, curve: LossCurve) -> None:
    from matplotlib.ticker import MaxNLocator

    steps = range(1, len(curve.losses) + 1)
    axes.plot(steps, curve.losses, color=_STEPS, linewidth=1, label="learnt, each step")
    if len(curve.losses) > _MANY:
        width = len(curve.losses) // 10
        smooth = smoothed(curve.losses, width)
        label = f"learnt, mean of {width} steps"
        axes.plot(steps, smooth, color=_MEAN, linewidth=1.8, label=label)
    held_out = curve.held_out_losses
    axes.plot(
        *(curve.held_out_steps, held_out, "o-"), color=_HELD_OUT, markersize=4, label="held out"
    )
    best = min(range(len(held_out)), key=held_out.__getitem__, default=None)
    if best is not None:
        axes.annotate(
            f"kept: {held_out[best]:.3f}",
            (curve.held_out_steps[best], held_out[best]),
            xytext=(0, 12),
            textcoords="offset points",
            ha="center",
            color=_HELD_OUT,
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def smoothed(values: tuple[float, ...], width: int) -> list[float]:
    """The mean of each value and of up to ``width - 1`` before it."""
    return [
        sum(values[max(0, end - width) : end]) / min(end, width)
        for end in range(1, len(values) + 1)
    ]
