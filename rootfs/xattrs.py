"""Which extended attributes of a layer are set, and what it means when one cannot be."""

from __future__ import annotations

import errno
import os
from typing import Final

from rootfs.errors import LayerRejected, shown

CAPABILITY: Final = b"security.capability"
DEFAULT_ACL: Final = b"system.posix_acl_default"

_ACLS: Final = frozenset({b"system.posix_acl_access", DEFAULT_ACL})
_OVERLAY: Final = (b"trusted.overlay.", b"user.overlay.")
_NAMESPACES: Final = {b"user": "user", b"trusted": "trusted", b"security": "security", b"system": "system"}
_UNFIT: Final = frozenset({errno.EINVAL, errno.E2BIG, errno.ERANGE, errno.ENOSPC, errno.ENAMETOOLONG})
_REFUSED: Final = frozenset({errno.EPERM, errno.EACCES})


def namespace_of(name: bytes) -> str:
    """Name the kind of an attribute for `Applied.skipped`."""
    if name.startswith(_OVERLAY):
        return "xattr:overlay"
    return "xattr:" + _NAMESPACES.get(name.partition(b".")[0], "other")


def is_wanted(name: bytes, *, privileged: bool) -> bool:
    """Tell whether an attribute out of a layer is to be set.

    Files' own attributes are: user, capabilities, POSIX ACLs. The node's are not: labels of security modules,
    measurements, trusted ones, and above all what overlayfs keeps for itself, which would make a layer say what lies
    below it.
    """
    if name.startswith(_OVERLAY):
        return False
    if name.startswith(b"user.") or name in _ACLS:
        return True
    return privileged and name == CAPABILITY


def set_xattr(descriptor: int, name: bytes, value: bytes, *, privileged: bool) -> bool:
    """Set one attribute; False when this filesystem or this process cannot.

    Raises:
        LayerRejected: the value is no capability or ACL, or there is no room for it in an inode.
    """
    try:
        os.setxattr(descriptor, name, value)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return False
        if error.errno in _REFUSED and not privileged:
            return False
        if error.errno == errno.EINVAL and not privileged and name in _ACLS:
            return False  # it names an owner that this user namespace does not have
        if error.errno in _UNFIT:
            reason = os.strerror(error.errno)
            raise LayerRejected(f"its extended attribute {shown(name)} cannot be set ({reason})") from error
        raise
    return True
