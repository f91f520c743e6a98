"""The way out of this machine: gate, budget, attempts, and the ledger before each body."""
