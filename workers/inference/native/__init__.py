"""The native CPU runner: the Qwen2 and Llama family without torch, its kernels compiled by numba.

Read in this order: `architecture` (what is computed), `packing` and `quantized_file` (how the
weights lie in memory), `lanes` (sixteen numbers at a time), `products`, `attention` and `step`
(the computation), `team` and `phases` (how threads share it), `runner` (the interface).
"""
