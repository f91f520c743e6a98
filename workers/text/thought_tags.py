"""The tags around what a model thinks before its answer (Qwen3, DeepSeek-R1 and their kin)."""

OPEN, CLOSE = "<think>", "</think>"
