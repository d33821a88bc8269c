"""The status of a job: what is remembered, charged, told in conditions, and added up."""
