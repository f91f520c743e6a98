"""Who answers a question, and why."""
