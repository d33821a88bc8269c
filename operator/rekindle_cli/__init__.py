"""The ``rekindle`` command: wires the other packages together and holds no policy.

What it knows about a job it reads from the Kubernetes API, as any other client would; what it says
about checkpoints and samples it reads from the checkpoint store and proves by the ledger. It starts
the operator as a process of its own, as a Deployment does, and never imports it.
"""
