"""Where pods run: the scheduler's loop around a pure decision."""
