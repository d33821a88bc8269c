"""The coordinator: the HTTP side of `rekindle.api`, its connections and certificates."""
