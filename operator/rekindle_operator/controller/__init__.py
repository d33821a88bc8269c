"""The shell around `reconcile`: watches, queues, and the order in which a plan is applied."""
