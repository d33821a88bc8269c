"""What the command prints: tables, words for causes, failures."""
