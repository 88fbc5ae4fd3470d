"""Bytes in, directories out: layers of container images onto a disk.

This package knows no registry, no CRI and no event loop, and imports nothing of cri_shim. `apply` turns the stream of
a layer into a directory; `client`, `helper` and `child` do that in a confined process of its own.
"""
