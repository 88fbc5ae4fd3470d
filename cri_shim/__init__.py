"""cri-shim: an image service for Kubernetes nodes (CRI v1), in Python.

The rooms, in the order in which they may import each other: `errors`, `oci` (the nouns of the specification), `auth`
(credentials), `registry` (the network), `store` (the disk), `images` (pull, remove, list), and on top `handoff`,
`server` and `cli`. `rootfs` beside this package turns layers into directories and knows nothing of it.
"""

import os

# Read by gRPC when it is imported, so they must stand before every import of it. Its fork handlers break calls in
# flight when a process is started (a helper is), and its own log lines would stand beside ours on a failed start.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
