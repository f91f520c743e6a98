"""The commands of ``shammah``."""
