"""Labelled sentences and golden numbers."""

from pathlib import Path

DATA = Path(__file__).parent
