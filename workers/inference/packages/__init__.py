"""What a model or an adapter is on disk, read and checked before any tensor is loaded."""
