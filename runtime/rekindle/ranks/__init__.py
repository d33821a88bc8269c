"""The processes that train together: their group, their gradients, and how they agree on a step.

``control`` and ``heartbeat`` are the pages of shared memory by which a worker and its pod's agent
talk; everything else here is between workers.
"""
