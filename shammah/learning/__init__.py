"""What was learnt from the person: feedback, examples and adapters."""
