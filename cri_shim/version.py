"""The version of cri-shim, in the one place that says it."""

VERSION = "0.1.0"
