"""`cri-shim demo`: the whole way of a pull on one machine, in seconds, without root, network or Kubernetes.

`images` makes sample images in memory, `layout` writes them down as an OCI image layout, `registry` serves them on
loopback with token authentication, `daemon` starts the real `cri-shim serve` as a process of its own, `client` talks
to it as crictl would, `picture` turns what came back into text, `run` tells the story. Nothing here is used by the
daemon. zstandard is imported here because the one door to it, `rootfs.compression`, only reads; grpc because this is
the client.
"""
