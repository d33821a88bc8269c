"""A kubelet that runs the containers of a pod as processes of this machine.

It is written against HTTP: it registers its node, watches the pods bound to it, and writes their
status, as any kubelet does. What a container runtime would isolate is shared here (file system,
users, network but for the address): mount paths are therefore rewritten where a pod names them,
`securityContext`, `readOnly` and CPU limits isolate nothing, and anything whose absence would
change what a program computes is refused when the pod arrives (see `admission`).
"""
