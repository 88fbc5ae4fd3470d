"""The network: manifests and blobs from registries, and nothing else.

Synchronous, called in worker threads, and it knows no store: bytes go to the caller or into a `Sink`. The rules here:

* `transport` is the only door to urllib3; redirects, retries, authentication and framing are decided by us above it,
  where each decision is a line that a test can reach.
* A peer is not believed. Every length, count, time and header is bounded; a digest decides what is right; an address
  is judged after it was resolved and before it is connected to (`policy`).
* A secret goes to the origin it was meant for, over the scheme it was meant for, and never into a message.
* Waiting is done on a `Cancel`, so that a caller who is gone takes the request with him, whatever it waits for.
"""
