"""An in-memory Kubernetes API server: kubectl, Helm, kopf and the client libraries work against it.

The layers, bottom up:

- values: `errors`, `schema` (prune, default, validate), `names`, `rules` (CEL), `models` (schemas
  of built-in kinds), `selectors`, `patches`, `ownership` (server-side apply), `protobuf`, `options`
- `storage`: objects, revisions, watch history; `registry`: which kinds are served;
- kinds: `builtins` and `crds`; `decoding`: from a body to an object that may be stored;
- `operations`: what the verbs do to objects; beside them how objects and kinds are shown (`tables`,
  `discovery`, `openapi`) and how requests are read (`requests`);
- what runs beside requests: `garbage`, `disruption`, `watches`, `logs`;
- `server`: HTTP.

Use `rekindle_local.apiserver.http.server.ApiServer`. There is no RBAC, no admission webhook, no
quota, no exec and no port-forward; a request for what is missing is answered with 404, 405 or 501.
"""
