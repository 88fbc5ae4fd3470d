"""What is on this node: the index, the documents, the layers, the blobs that are still arriving.

The store knows no network and no gRPC. Three things make an image:

* *documents*: the manifest, the index it came out of and the config, byte for byte, in `blobs/`;
* *layers*: one directory each below `overlay/`, keyed by diff ID (plain) or by the chain (other forms), each with a
  seal that tells what it is;
* one *record* in the index, written last, in one transaction. An image exists when its record does.

The order of every change is such that a kill at any instant leaves either nothing or the whole: a layer is synced and
renamed before its row is written, the record is written after everything it refers to; removal goes the other way.
What the index says is kept in memory too (`catalog`), so that reads never wait for a disk.
"""
