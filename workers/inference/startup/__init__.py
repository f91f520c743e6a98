"""From nothing to a loaded model: find it, choose how it is computed, load it."""
