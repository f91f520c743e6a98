"""The gateway worker: the endpoint for other programs, which speaks as OpenAI's and Anthropic's do.

HTTP in, the turn runner of the prompt inside, the bus behind: it is a client of the other workers
like any frontend. One event loop on the work thread; each answer in hand has a thread of its own.
"""
