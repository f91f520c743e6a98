"""Which models there are, what they weigh, and what this machine has for them."""
