"""Whether workers make progress, and what is known when they do not."""
