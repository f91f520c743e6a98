"""The train worker as a service of `workers.host`: one training after the other."""

from __future__ import annotations

import gc
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import psutil

from shammah.bus import training
from shammah.bus.client import Peer
from shammah.bus.endpoints import Endpoints
from shammah.bus.messages import Event, Failed
from shammah.bus.training import (
    ImportAdapter,
    MergeAdapter,
    Train,
    Trained,
    Training,
    TrainingProgress,
    TrainProgress,
)
from shammah.errors import ShammahError
from shammah.learning.adapters import AdapterStore
from shammah.settings.model import Settings
from workers.confinement import Request
from workers.confinement.places import tree
from workers.logs import describe
from workers.service import Outlet
from workers.train.brake import Brake, CancelledError
from workers.train.importing import import_adapter
from workers.train.merging import merge
from workers.train.run import TrainingRun

log = logging.getLogger(__name__)

NICE = 19
"""The lowest priority: on Linux of the work thread and those that it starts, so that the bus
is answered at once all the same."""

REQUIRED = ("torch", "transformers", "peft")

QUESTION = "a question is being answered"
BATTERY = "the machine runs on battery"
POWER_S = 10.0
"""How often the battery is looked at."""


class Run(Protocol):
    """See `workers.train.run.TrainingRun`."""

    progress: TrainingProgress

    def execute(self) -> Trained: ...


MakeRun = Callable[[Train, Brake, Callable[[TrainingProgress], None], Outlet], Run]


class TrainService:
    """See `workers.service.Service`.

    Args:
        settings: whose.
        environ: of this process.
        endpoints: where the inference worker's events come from.
        on_battery: whether the machine runs on battery.
        make_run: what does the work; ``None``: a real training.
        narrow: holds a thread to the files that its request names.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        endpoints: Endpoints,
        on_battery: Callable[[], bool] | None = None,
        make_run: MakeRun | None = None,
        narrow: Callable[[Request], None] = lambda request: None,
    ) -> None:
        self._settings = settings
        self._environ = dict(environ)  # libraries are told things through the real one
        self._endpoints = endpoints
        self._on_battery = on_battery or runs_on_battery
        self._make_run = make_run or self._real_run
        self._narrow = narrow
        self._inbox: queue.SimpleQueue[training.Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._withdrawn: set[str] = set()
        self._stopped = False
        self._current: tuple[str, Brake] | None = None

    # --- called by the host, on its thread ------------------------------------------------

    def submit(self, request: training.Request, client: str = "") -> None:
        self._inbox.put(request)

    def cancel(self, request_id: str) -> None:
        with self._lock:
            if self._current is not None and self._current[0] == request_id:
                self._current[1].cancel()
            else:
                self._withdrawn.add(request_id)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._current is not None:
                self._current[1].cancel()
        self._inbox.put(None)

    # --- the work thread ------------------------------------------------------------------

    def run(self, outlet: Outlet) -> None:
        _lower_priority()
        outlet.publish(Training())
        while (request := self._inbox.get()) is not None:
            brake = Brake()
            with self._lock:
                if self._stopped:
                    return
                self._current = (request.request_id, brake)
                if request.request_id in self._withdrawn:
                    brake.cancel()
            # A thread of its own for each: what holds a thread holds it for good.
            thread = threading.Thread(
                target=self._answer, args=(request, brake, outlet), name="work-one", daemon=True
            )
            thread.start()
            thread.join()
            with self._lock:
                self._current = None
                self._withdrawn.discard(request.request_id)
            gc.collect()  # the model of the run that has ended
            outlet.publish(Training())

    def _answer(self, request: training.Request, brake: Brake, outlet: Outlet) -> None:
        outlet.reply(self._work(request, brake, outlet))

    def _work(
        self, request: training.Request, brake: Brake, outlet: Outlet
    ) -> training.Reply | Failed:
        try:
            _check_installed()
            self._narrow(files_of(request, self._settings.home))
            if isinstance(request, MergeAdapter):
                outlet.publish(Training(TrainingProgress(request.adapter, "merging")))
                return merge(request, self._settings, self._environ, outlet.advance)
            if isinstance(request, ImportAdapter):
                return self._import(request, brake, outlet)
            return self._train(request, brake, outlet)
        except CancelledError:
            hint = "Run the same command again to resume."
            said = "The training was stopped; its progress is saved."
            return Failed("cancelled", said, hint, request.request_id)
        except BaseException as error:  # a panic in a library written in Rust is no Exception
            if not hasattr(error, "hint"):
                log.exception("the training failed")
            return as_failure(error, request.request_id)

    def _import(self, asked: ImportAdapter, brake: Brake, outlet: Outlet) -> training.Imported:
        def advance() -> None:
            outlet.advance()
            brake.check()

        brake.on_wait = lambda why: outlet.advance()
        outlet.publish(Training(TrainingProgress(asked.adapter, "judging")))
        with Surroundings(self._endpoints, brake, lambda: False):
            return import_adapter(asked, self._settings, self._environ, advance)

    def _real_run(
        self,
        train: Train,
        brake: Brake,
        report: Callable[[TrainingProgress], None],
        outlet: Outlet,
    ) -> Run:
        return TrainingRun(
            train,
            self._settings,
            environ=self._environ,
            brake=brake,
            report=report,
            advance=outlet.advance,
        )

    def _train(self, train: Train, brake: Brake, outlet: Outlet) -> Trained:
        def report(progress: TrainingProgress) -> None:
            progress = replace(progress, adapter=train.name)
            outlet.reply(TrainProgress(train.request_id, progress))
            outlet.publish(Training(progress))

        run = self._make_run(train, brake, report, outlet)
        report(run.progress)
        battery = (lambda: False) if train.on_battery else self._on_battery
        with Surroundings(self._endpoints, brake, battery):
            return run.execute()


def files_of(request: training.Request, home: Path) -> Request:
    """What a request names on this disk, its model too.

    Raises:
        ShammahError: ``adapter_not_found``.
    """
    match request:
        case MergeAdapter():
            model = request.model or AdapterStore(home).get(request.adapter).base_model
            target = Path(request.directory).parent
            return Request(model, writes=(target,))
        case ImportAdapter():
            given = [*tree(Path(request.directory))]
        case _:
            given = []
    given += [Path(request.examples)] if request.examples else []
    return Request(request.model, tuple(given))


class Surroundings:
    """What a training gives way to, while it goes on: questions, and an empty battery."""

    def __init__(self, endpoints: Endpoints, brake: Brake, on_battery: Callable[[], bool]) -> None:
        self._endpoints = endpoints
        self._brake = brake
        self._on_battery = on_battery
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch_power, name="work-power", daemon=True)
        self._peer: Peer | None = None

    def __enter__(self) -> None:
        self._peer = Peer(self._endpoints, "inference", None, self._on_event)
        self._look_at_power()
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._left.set()
        assert self._peer is not None
        self._peer.close()
        self._thread.join()

    def _on_event(self, event: Event | None) -> None:
        if event is not None and event.status.active > 0:
            self._brake.hold(QUESTION)
        else:
            self._brake.release(QUESTION)

    def _watch_power(self) -> None:
        while not self._left.wait(POWER_S):
            self._look_at_power()

    def _look_at_power(self) -> None:
        (self._brake.hold if self._on_battery() else self._brake.release)(BATTERY)


def runs_on_battery() -> bool:
    """Whether this is a machine with a battery that is not plugged in."""
    try:
        battery = psutil.sensors_battery()
    except Exception:  # a system that has no such thing, or reports it in its own way
        return False
    return battery is not None and battery.power_plugged is False


def _check_installed() -> None:
    if missing := [name for name in REQUIRED if find_spec(name) is None]:
        raise ShammahError(
            "not_installed",
            f"Training needs {' and '.join(missing)}, which this installation does not have.",
            "Run: pip install 'shammah[train]' (scripts/run does it by itself, in the background).",
        )


def _lower_priority() -> None:
    try:
        os.nice(NICE)
    except OSError as error:
        log.warning("the priority stays as it is: %s", error)


def as_failure(error: BaseException, request_id: str) -> Failed:
    """What the one who asked is told."""
    if isinstance(error, ShammahError):
        return Failed(error.code, error.message, error.hint, request_id)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        why = "The GPU's memory is full."
        hint = "Close other programs that use it, train a smaller model, or add --qlora."
        return Failed("out_of_memory", why, hint, request_id)
    why = f"The training failed: {describe(error)}"
    return Failed("internal", why, "See the train worker's log.", request_id)
