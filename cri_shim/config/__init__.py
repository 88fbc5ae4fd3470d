"""The configuration: what can be set, where it comes from, what was wrong with it.

`schema` declares every key with its type, its default and its meaning; `sources` reads files, environment and flags;
`load` lays them over each other: flag > environment > drop-in > file > default. Nobody below the server sees a
`Config`: it is taken apart into plain values there.
"""
