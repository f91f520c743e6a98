"""Servers that speak OpenAI's API, as whatever answers a question."""
