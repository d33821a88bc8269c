"""How pods end and what holds them: tables of causes, and how each shows."""
