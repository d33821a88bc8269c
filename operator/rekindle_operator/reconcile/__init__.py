"""The decision about a job: pure functions from what is wanted and observed to a plan."""
