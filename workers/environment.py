"""What the libraries of this worker must find in the environment when they are imported."""

from __future__ import annotations

import os


def prepare_libraries() -> None:
    """Call before the first import of numpy, torch or transformers: they read these once.

    No network: everything that is loaded is on the disk by then, and fetching is another
    worker's task. And threads that sleep while they wait: torch's default is to spin, which
    on a machine with anything else to do makes every step three to ten times as long. And none
    of numpy's own: nothing here multiplies matrices with it, and they spin when they are made.
    """
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"  # a file that they may not read
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
