"""The verbs that take more than one step: pull, remove, and what is known about both.

`service.Images` is what the server and the command line stand on. One pull, top to bottom, is `pull.Puller`:

    reference → credentials in order → manifest (always asked for) → platform → config → layers → forms → record

`flight` keeps several callers on one piece of work, `layers` decides who may use what is here and brings the rest,
`forms` gives a layer a directory of its own where it needs one, `network` and `store.Store` do the blocking work in
threads. Nothing here holds a lock across an await; what is shared changes between awaits, on the event loop.
"""
