"""States and errors in words for a terminal. Pure."""

from __future__ import annotations

import math

from shammah.bus.messages import (
    Downloading,
    Failed,
    Initializing,
    Loading,
    NotAvailable,
    PromptProgress,
    Ready,
    Retrying,
    Serving,
    State,
    Usage,
)
from shammah.bus.training import Training, TrainingProgress
from shammah.bus.transfers import Transfer, Transferring
from shammah.terminal.text import printable as printable


def describe_state(state: State | None) -> str:
    """Return one short line: ``Loading starter: weights (2/4)``."""
    return printable(_describe_state(state))


def _describe_state(state: State | None) -> str:
    match state:
        case None:
            return "Starting"
        case Initializing():
            return "Initializing"
        case Downloading():
            return f"Downloading {_describe_download(state, state.model)}"
        case Loading(model, stage, done, total):
            return f"Loading {model}: {stage} ({min(done + 1, total)}/{total})"
        case Ready(model):
            numbers = describe_numbers(state.dtype, state.quantization)
            facts = [numbers, state.device] if numbers else []
            facts += [f"{state.context_length:,} tokens"] if state.context_length else []
            facts += ["a small fallback model"] if state.fallback else []
            parts = [f"Ready: {model}" + (f" ({', '.join(facts)})" if facts else "")]
            parts += [_describe_successor(state.successor)] if state.successor else []
            parts += [state.note] if state.note else []
            return " · ".join(parts)
        case Transferring(transfers):
            said = [f"{one.model} {describe_transfer(one)}" for one in transfers]
            return "; ".join(said) or "Idle"
        case Training(progress):
            return describe_training(progress) if progress else "No training"
        case Serving(address, requests, waiting):
            busy = f" · {requests} in hand" if requests else ""
            more = f" · {waiting} waiting" if waiting else ""
            return f"Serving at {address}{busy}{more}"
        case NotAvailable(reason, _):
            return f"Not available: {reason}"
        case Failed(_, message, _):
            return f"Failed: {message}"


def describe_numbers(dtype: str, quantization: str) -> str:
    """``float32``, or ``int8 weights computed in float32``: what is stored is not what is computed
    with."""
    return f"{quantization} weights computed in {dtype}" if quantization else dtype


def describe_training(progress: TrainingProgress) -> str:
    """One line: ``training starter: step 12/60, loss 1.234, held-out 2.345, 180 tokens/s``."""
    parts = [f"{progress.phase} {short_name(progress.model)}"]
    parts[0] += f": {progress.detail}" if progress.detail else ""
    figures = describe_figures(progress)
    return printable(", ".join([*parts, figures] if figures else parts))


def describe_figures(progress: TrainingProgress) -> str:
    """``step 12/60, loss 1.234, held-out 2.345, 180 tokens/s``; empty: there are none yet."""
    parts = [f"step {progress.step}/{progress.steps}"] if progress.steps else []
    parts += [f"loss {progress.loss:.3f}"] if progress.loss is not None else []
    if progress.held_out_loss is not None:
        parts.append(f"held-out {progress.held_out_loss:.3f}")
    rate = progress.tokens_per_second
    parts += [f"{rate:,.0f} tokens/s"] if rate else []
    parts += [f"{describe_duration(progress.eta_s)} left"] if progress.eta_s is not None else []
    return ", ".join(parts)


def describe_coming(state: State | None) -> str:
    """Return what is not ready yet, in one line; empty if all is."""
    if isinstance(state, Ready):
        return printable(_describe_successor(state.successor)) if state.successor else ""
    return describe_state(state)


def download_under_way(state: State | None) -> Downloading | None:
    """Return the download that a worker in ``state`` waits for, with or without a fallback."""
    if isinstance(state, Ready):
        return state.successor
    return state if isinstance(state, Downloading) else None


def describe_background(download: Downloading | Transfer) -> str:
    """Return what to know about a download when exiting."""
    share = f" ({describe_percent(download.done, download.total)})" if download.total else ""
    model = printable(download.model)
    if isinstance(download, Transfer) and download.phase == "paused":
        return (
            f"The download of {model} stays paused{share}. To continue it: `shammah models pull "
            f"--resume {model}`; to cancel it: `shammah models pull --cancel {model}`."
        )
    return (
        f"The download of {model} continues in the background{share}. To see it: `shammah status`; "
        f"to cancel it: `shammah models pull --cancel {model}`."
    )


def _describe_successor(download: Downloading) -> str:
    return f"fetching {_describe_download(download, short_name(download.model))}"


def _describe_download(download: Downloading, name: str) -> str:
    amount = describe_bytes(download.done, download.total, download.rate, download.eta_s)
    return f"{name}: {amount}"


def short_name(model: str) -> str:
    """Return a model's name without its owner."""
    return model.rpartition("/")[2]


def describe_transfer(transfer: Transfer) -> str:
    """``running (no data for 7 s): 41%, 1.3 of 3.1 GB``."""
    phase = transfer.phase + (f" ({transfer.detail})" if transfer.detail else "")
    if not transfer.total:
        return phase
    done, total = transfer.done, transfer.total
    return f"{phase}: {describe_bytes(done, total, transfer.rate, transfer.eta_s)}"


def describe_bytes(done: int, total: int, rate: float, eta_s: float | None) -> str:
    """``41%, 1.3 of 3.1 GB, 24.0 MB/s, 1 min 12 s left``."""
    if not total:
        return f"{done / 1e6:.1f} MB"
    parts = [describe_percent(done, total), describe_amount(done, total)]
    if rate:
        parts.append(f"{rate / 1e6:.1f} MB/s")
    if eta_s is not None and (done < total or eta_s >= 1):  # some may have to be downloaded again
        parts.append(f"{describe_duration(eta_s)} left")
    return ", ".join(parts)


def describe_amount(done: int, total: int) -> str:
    """``1.3 of 3.1 GB``."""
    unit, name = _unit(total)
    return f"{done / unit:.1f} of {total / unit:.1f} {name}"


def describe_size(size: int) -> str:
    """``3.1 GB``."""
    unit, name = _unit(size)
    return f"{size / unit:.1f} {name}"


def _unit(size: int) -> tuple[float, str]:
    return (1e9, "GB") if size >= 1e9 else (1e6, "MB")


def describe_percent(done: int, total: int) -> str:
    """``41%``."""
    return f"{100 * done // total}%"


def describe_duration(seconds: float) -> str:
    """``8 s``, ``1 min 12 s``, ``2 h 5 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def describe_left_out(turns: int) -> str:
    """``2 private turns left out``."""
    return f"{turns} private turn{'' if turns == 1 else 's'} left out"


def describe_unseen(usage: Usage) -> str:
    """``The first 14 of 37 messages no longer fit and were not seen.``"""
    return f"The first {usage.unseen} of {usage.messages} messages no longer fit and were not seen."


def describe_cost(dollars: float) -> str:
    """``$0.0021``, ``$1.25``: at least two digits that say something."""
    if 0 < dollars < 0.0001:
        return "less than $0.0001"
    return f"${dollars:.4f}" if 0 < dollars < 0.1 else f"${dollars:,.2f}"


def describe_cached(read: int, written: int) -> str:
    """``1,024 read from the cache, 20 written``, of tokens; empty: the cache was not used."""
    parts = [f"{read:,} read from the cache"] if read else []
    parts += [f"{written:,} written" + ("" if read else " to the cache")] if written else []
    return ", ".join(parts)


def describe_prompt(progress: PromptProgress) -> str:
    """``reading the question: 1,024 of 7,512 tokens``."""
    return f"reading the question: {progress.done:,} of {progress.total:,} tokens"


def describe_thinking(tokens: int) -> str:
    """``thinking ... 120 tokens``."""
    return f"thinking ... {tokens:,} token" + ("" if tokens == 1 else "s")


def describe_retrying(retrying: Retrying) -> str:
    """``Claude is overloaded; trying again in 4 s (2 of 5)``."""
    wait = describe_duration(max(1, math.ceil(retrying.wait_s)))
    place = f"({retrying.attempt} of {retrying.attempts})"
    return printable(f"{retrying.why}; trying again in {wait} {place}")


def describe_failure(failure: Failed) -> str:
    return printable(f"{failure.message} {failure.hint}".rstrip())
