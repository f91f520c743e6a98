"""Workers' lives, seen from a frontend: started, attached to, replaced, stopped."""
