"""Jobs on this machine: the embedded cluster, the operator, the demo."""
