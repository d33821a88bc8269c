"""Who trains together: the pure decision about rounds, and what it rests on."""
