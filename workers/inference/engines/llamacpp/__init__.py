"""The engine for GGUF files, on llama.cpp.

`library` (its C functions), `structures` (what they take by value), `models` (files to models),
`tokenizer` (text and tokens by the file's own rules), `runner` (the interface).
"""
