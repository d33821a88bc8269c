"""Which samples a step reads, and how they are read: order, loaders, streams, and the proof of it.

``order`` and ``draws`` decide as pure functions, ``loader`` and ``streams`` read what was decided,
``ledger`` proves afterwards which samples the weights have seen.
"""
