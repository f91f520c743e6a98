"""What a person types at the prompt."""
