"""How things fail: codes of failed checks, how a process ends, and what is reported of it."""
