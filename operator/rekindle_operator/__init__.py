"""The control plane: turns TrainingJobs into pods, pods into rounds, and failures into incidents.

Read it from the inside out: ``spec`` (what is wanted), ``observed`` (what is there), ``rounds``,
``incidents``, ``resources`` and ``status`` (the decisions, each a pure function), ``reconcile``
(puts them together), and the shell around it: ``cluster`` (Kubernetes), ``coordinator`` (agents),
``handlers`` (kopf).
"""
