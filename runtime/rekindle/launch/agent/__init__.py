"""The agent: torch's elastic agent with a main loop of our own, and what it decides by."""
