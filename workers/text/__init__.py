"""How a model's files say that conversations are written: read once, for answers and training."""
