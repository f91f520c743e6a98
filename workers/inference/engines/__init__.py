"""The engines: each folder computes models in one way and knows no other folder."""
