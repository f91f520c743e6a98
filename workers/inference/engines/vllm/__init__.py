"""Many conversations at once on a GPU, through vLLM."""
