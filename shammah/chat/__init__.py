"""One conversation, and the way of one question to its answer."""
