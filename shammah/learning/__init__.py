"""What Shammah has learnt from the person: feedback, examples and adapters."""
