"""What is there for a job: pods, nodes, agents, notices, parsed into frozen values."""
