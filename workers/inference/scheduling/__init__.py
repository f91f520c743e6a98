"""Which sequence computes what in the next step, and which token it takes."""
