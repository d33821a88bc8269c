"""What outlives a process: when a run's state is saved, where, and what the next one begins from.

``persistence`` is the whole of it for one attempt; ``cadence`` says when, ``policy`` where and how
many, ``lease`` who may write; ``keeping`` and ``recall`` are the copies in the memory of the pods,
``restore`` chooses what to begin from. The store itself is `rekindle.checkpoint`.
"""
