"""Object stores: what the protocol asks of one, on S3 and on a file system."""
