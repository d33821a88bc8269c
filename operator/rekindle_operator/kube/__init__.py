"""The Kubernetes API: the only module that calls it, and reflectors over its watches."""
