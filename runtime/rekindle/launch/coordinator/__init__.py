"""The agent's side of the conversation with the coordinator, and with the other pods."""
