"""The history: finished turns, kept in a file that never leaves this machine."""
