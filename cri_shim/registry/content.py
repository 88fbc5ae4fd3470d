"""Small documents: manifests and configs, asked for, bounded and verified before anyone parses them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cri_shim.errors import ContentRejected, LimitExceeded
from cri_shim.oci import media
from cri_shim.registry.failure import RefusedAbroad, quoted
from rootfs.digest import Digest
from rootfs.errors import InvalidDigest, UnsupportedDigest

if TYPE_CHECKING:
    from cri_shim.oci.descriptor import Descriptor
    from cri_shim.oci.reference import Reference
    from cri_shim.registry.reply import Reply
    from cri_shim.registry.session import Session

MANIFEST_BYTES = 4 << 20
ACCEPT = (("Accept", ", ".join((*media.ACCEPTED, "*/*"))),)
HEAD_REFUSED = frozenset({400, 405, 501})
QUOTED_BYTES = 64
_LENGTH = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or an index as a host gave it: verified bytes and what they are said to be."""

    data: bytes
    media_type: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class Told:
    """What a HEAD says of a manifest."""

    digest: Digest
    media_type: str
    size_bytes: int | None


def manifest_path(reference: Reference, tag_there: str = "") -> str:
    """Return where the manifest of *reference* lies; a digest goes before a tag. A host may call a tag *tag_there*."""
    return f"manifests/{reference.digest or tag_there or reference.tag or 'latest'}"


def read_manifest(session: Session, reference: Reference) -> Document:
    """GET the manifest.

    Raises:
        ContentRejected: It is not what its digest (asked for, or told in a header) promises, or is a web page.
        LimitExceeded: It is larger than 4 MiB.
        ShimError: As `Session.ask`.
    """
    with session.ask("GET", manifest_path(reference, session.host.tag), ACCEPT) as reply:
        refuse_web_page(reply, "a manifest")
        told = told_digest(reply)
        data = reply.body(MANIFEST_BYTES, f"the manifest {reference}")
        media_type = media.bare(reply.get("content-type"))
    digest = _verified(session.host.name, data, reference.digest, told)
    return Document(data, media_type, digest)


def head_manifest(session: Session, reference: Reference) -> Told | None:
    """HEAD the manifest; None where the host has no proper HEAD and a GET must tell.

    Raises:
        ContentRejected: The digest it tells is not one, or not the one asked for.
        ShimError: As `Session.ask`.
    """
    with session.ask("HEAD", manifest_path(reference, session.host.tag), ACCEPT, fine=(200, *HEAD_REFUSED)) as reply:
        digest = told_digest(reply) if reply.status == 200 else None
        size_bytes = _length(reply)
        if digest is None or (size_bytes or 0) > MANIFEST_BYTES:
            return None
        if reference.digest is not None and digest != reference.digest:
            raise ContentRejected(f"{session.host.name} answered with another manifest ({digest}) than asked for")
        return Told(digest, media.bare(reply.get("content-type")), size_bytes)


def read_blob(session: Session, descriptor: Descriptor, limit_bytes: int) -> bytes:
    """GET a small blob whole.

    Raises:
        ContentRejected: It has not the size or digest of *descriptor*.
        LimitExceeded: *descriptor* promises more than *limit_bytes*.
        ShimError: As `Session.ask`.
    """
    size_bytes = descriptor.size_bytes
    if size_bytes > limit_bytes:
        raise LimitExceeded(f"the blob {descriptor.digest} of {size_bytes} bytes is larger than {limit_bytes} bytes")
    with session.ask("GET", f"blobs/{descriptor.digest}") as reply:
        check_length(reply, size_bytes, size_bytes)
        data = reply.start(size_bytes + 1)
    host = session.host.name
    if len(data) != size_bytes:
        raise ContentRejected(f"{host} sent a blob of another size than {size_bytes} bytes for {descriptor.digest}")
    if Digest.of(data, descriptor.digest.algorithm) != descriptor.digest:
        raise ContentRejected(f"{host} sent other bytes for the blob {descriptor.digest} than its digest promises")
    return data


def has_blob(session: Session, digest: Digest, size_bytes: int | None) -> bool:
    """Tell whether the host gives the blob: HEAD, or the first byte where HEAD is refused (by an object store, say).

    Where *size_bytes* is known the host must tell it: a login page is no proof.

    Raises:
        ShimError: As `Session.ask`.
    """
    path = f"blobs/{digest}"
    try:
        with session.ask("HEAD", path, fine=(200, *HEAD_REFUSED)) as reply:
            if reply.status == 200:
                return _tells(reply, size_bytes)
    except RefusedAbroad:
        pass  # a signature for GET does not open a HEAD
    with session.ask("GET", path, (("Range", "bytes=0-0"),), fine=(200, 206)) as reply:
        return _tells(reply, size_bytes)


def _tells(reply: Reply, size_bytes: int | None) -> bool:
    """Tell whether an answer is that of a blob of *size_bytes*."""
    total = reply.get("content-range").rpartition("/")[2] if reply.status == 206 else reply.get("content-length")
    page = media.bare(reply.get("content-type")) == "text/html"
    return not page and (size_bytes is None or total == str(size_bytes))


def _length(reply: Reply) -> int | None:
    """Return what a HEAD says of the length."""
    length = reply.get("content-length")
    return int(length) if _LENGTH.fullmatch(length) else None


def told_digest(reply: Reply) -> Digest | None:
    """Return `Docker-Content-Digest`, None where it is not sent or of an algorithm that is not known.

    Raises:
        ContentRejected: It is garbage, or there are two.
    """
    values = reply.all("docker-content-digest")
    if not values:
        return None
    try:
        return Digest.parse(values[0].strip() if len(values) == 1 else "")
    except UnsupportedDigest:
        return None
    except InvalidDigest:
        raise ContentRejected(f"{reply.url.authority} tells a Docker-Content-Digest that is none") from None


def refuse_web_page(reply: Reply, instead_of: str) -> None:
    """Refuse an answer that is a page for people: the login form of a proxy, mostly.

    Raises:
        ContentRejected: It is; quotes its start.
    """
    if media.bare(reply.get("content-type")) == "text/html":
        start = reply.start(QUOTED_BYTES)
        raise ContentRejected(f"{reply.url.authority} sent a web page instead of {instead_of}: {quoted(start)}")


def check_length(reply: Reply, wanted_bytes: int, size_bytes: int) -> None:
    """Refuse a body of another length before it is read.

    Raises:
        ContentRejected: The length told is not *wanted_bytes*, what is to come of a blob of *size_bytes*.
    """
    refuse_web_page(reply, "a blob")
    if reply.length_bytes not in (None, wanted_bytes):
        told = f"announced {reply.length_bytes} bytes where {wanted_bytes} are to come"
        raise ContentRejected(f"{reply.url.authority} {told} of a blob of {size_bytes} bytes")


def _verified(host: str, data: bytes, wanted: Digest | None, told: Digest | None) -> Digest:
    """Return the digest of *data*: the one asked for, else that which the host tells, else its sha256."""
    expected = wanted or told
    digest = Digest.of(data, expected.algorithm if expected else "sha256")
    if wanted is not None and digest != wanted:
        raise ContentRejected(f"{host} sent other bytes for the manifest {wanted} than its digest promises")
    if told is not None and told != Digest.of(data, told.algorithm):
        raise ContentRejected(f"{host} tells the digest {told} for a manifest that has another")
    return digest
