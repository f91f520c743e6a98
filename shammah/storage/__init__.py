"""Files and databases of our own on this disk."""
