"""The native CPU runner: the Qwen2 and Llama family without torch, its kernels compiled by numba.

Read in this order: `architecture` (what is computed), `layout`, `packing` and `int4_packing` (how
weights of 8 and of 4 bits lie in memory), `quantized_file`, `lanes` and `pairs` (sixteen numbers at
a time), `products`, `attention` and `step` (the computation), `thread_pool` and `phases` (how
threads share it), `processor` (where it runs), `runner` (the interface).
"""
