"""Giving images to runtimes: the implementations of `cri_shim.images.publishing.HandOff`.

Each kind of runtime has its own way, and none of them gets a second copy of a layer's content.
"""
