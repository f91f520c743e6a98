"""Real worker processes with a simple or faulty service in the place of a model."""
