"""What the person has set: read, checked, shown and changed."""
