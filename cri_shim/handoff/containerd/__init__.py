"""Images for containerd: layers hard-linked into snapshots of its own, documents and names registered over its socket.

Nothing in containerd's configuration changes, and nothing of ours has to run for a container to start: what containerd
finds is what it would have made itself, less the layers' blobs, which it never opens. `records` says what is
registered, `client` speaks to its socket, `publish` registers one image, `handoff` keeps both sides in agreement.
"""
