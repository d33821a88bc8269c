"""An in-memory Kubernetes API server that kubectl, the Kubernetes clients and kopf work against.

The layers, bottom up: values (`errors`, `names`, `selectors`, `patches`, `protobuf`), storage with
watch history (`storage`), schemas and rules (`schema`, `models`, `rules`), kinds (`registry`,
`crds`, `builtins`), what a request does to objects (`operations`), background controllers
(`garbage`, `disruption`), presentation (`tables`, `discovery`, `openapi`) and, on top, HTTP
(`watches`, `pods`, `server`). Import the server from `rekindle_local.apiserver.server`.

There is no RBAC, no admission webhook, no quota, no exec and no port-forward, and it says so.
"""
