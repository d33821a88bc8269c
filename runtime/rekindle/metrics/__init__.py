"""Values that a script logs, and what callbacks, Prometheus and people see of them."""
