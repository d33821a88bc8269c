"""The embedded cluster: a Kubernetes API server, kubelets, a scheduler and an object store.

It exists so that one command runs a training job on a laptop, and so that the tests drive the
operator through a real API instead of mocks. Nothing here knows what a TrainingJob is: the kind
arrives as a CustomResourceDefinition like any other. What is not implemented answers 404, 405 or
501 with a proper Status body; nothing is accepted and ignored.
"""
