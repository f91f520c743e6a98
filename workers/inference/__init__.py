"""The local model: find it, check it, load it, answer with it.

The logic knows neither processes nor sockets; `service` is the thin part that the host runs.
Nothing here imports torch or transformers before a model is loaded.
"""
