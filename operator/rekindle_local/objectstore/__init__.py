"""The embedded S3 server: moto's S3 behind a check of signatures and permissions."""
