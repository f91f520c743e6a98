"""Shammah: a local-first assistant for the terminal.

This package is the light frontend. Nothing here may import torch, transformers,
huggingface_hub, anthropic or `workers` (held by tests/test_architecture.py), and this
file imports nothing at all: it runs before the prompt is on the screen.
"""

__version__ = "0.1.0"
