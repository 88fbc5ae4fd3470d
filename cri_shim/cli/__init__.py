"""The command line: one file per verb, each with `arguments` (its options) and `run` (exit code).

Exit codes: 0 done, 1 failed (one line on stderr says why), 2 used wrongly. Only the module of the verb that was asked
for is imported: `cri-shim --version` pays for no gRPC.
"""
