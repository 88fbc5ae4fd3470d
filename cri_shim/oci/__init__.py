"""The nouns of the OCI specifications: references, platforms, descriptors, manifests, configs.

Everything here is pure: text or bytes in, frozen values out, no clock, no file, no network. What comes from a registry
is read strictly, so that two readers can never disagree on what a document says: a document that could be read in two
ways is refused rather than read in one of them. Digests are checked before anything else may use them.

* `reference`   the name of an image, as `ParseDockerRef` of distribution/reference reads it
* `imageid`     whether a text can be an image's id
* `platforms`   which entry of an index this machine takes
* `manifest`    indexes and manifests; `config` the image config; `descriptor` what both are made of
* `media`       the media types; `strictjson` and `fields` how a document is read; `shown` how one is quoted
"""
