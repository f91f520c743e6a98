"""The servers beside the local model: the worker that asks them."""
