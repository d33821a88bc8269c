"""The coordinator: the HTTP side of `rekindle.contract`, its connections and certificates."""
