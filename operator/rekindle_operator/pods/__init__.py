"""The children of a job as manifests: what they are, whose they are, which names are taken."""
