"""What a request does to objects: decoding, patches, server-side apply, operations."""
