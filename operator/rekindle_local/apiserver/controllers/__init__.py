"""What follows from writes in the background: garbage collection, disruption budgets."""
