"""The edge: the only room (with `cri_shim.pb`) that knows gRPC.

`serve` starts and stops the daemon; `service` answers the calls, each in a few lines, through the one wrapper of
`rpc`, which counts, logs and maps errors by the one table of `status`. `convert` turns values into messages and spells
ids as the node's runtime does. Nothing here decides anything about images: that is done in `cri_shim.images`.
"""
