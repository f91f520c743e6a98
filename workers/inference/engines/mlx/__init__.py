"""Apple silicon, through mlx and the models of mlx-lm."""
