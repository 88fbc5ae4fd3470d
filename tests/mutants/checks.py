"""Checks that guard the node, each with what the source looks like without it and the tests that must notice.

The runner (`run.py`) takes one check away at a time. An entry whose text is no longer in its file, once, is an error:
whoever changes a check changes its entry.
"""

from __future__ import annotations

from dataclasses import dataclass

R, C = "rootfs/", "cri_shim/"
T = "tests/rootfs/test_"


@dataclass(frozen=True)
class Mutant:
    """One check taken away.

    Attributes:
        file: below the root of the checkout.
        old: what stands in it, once.
        new: what is to stand there instead.
        tests: arguments for pytest; at least one test must fail.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def gone(file: str, condition: str, *tests: str) -> Mutant:
    """The condition of an `if` or `elif` is never true."""
    return Mutant(file, f"if {condition}:", "if False:", tests)


NAMES = (
    Mutant(R + "names.py", "            if not parts:\n", "            if False:\n", (T + "names.py",)),
    Mutant(R + "whiteout.py", 'if hidden in (b"", b".", b".."):', 'if hidden == b"":', (T + "names.py",)),
    gone(R + "whiteout.py", "part.startswith(PREFIX)", T + "names.py"),
    gone(R + "whiteout.py", "part.startswith(_AUFS)", T + "names.py"),
    gone(R + "tree.py", "base.startswith(PREFIX)", T + "apply_whiteouts.py::test_links_make_no_names_of_whiteouts"),
    Mutant(
        R + "tree.py",
        'raise LayerRejected("the root of the layer must stay a directory")',
        "return",
        (T + "apply_paths.py::test_the_root_stays_a_directory",),
    ),
)

PARENTS = (
    gone(R + "parents.py", "self._hops > _HOPS", T + "apply_paths.py::test_forty_links_lead_on_and_no_more"),
    Mutant(
        R + "parents.py",
        'raise LayerRejected("one of its parents is not a directory")',
        "return False",
        (T + "apply_paths.py", T + "parents.py"),
    ),
    Mutant(
        R + "parents.py",
        'self._names = []\n            self._enter(open_beneath(self._root, b""))',
        "pass",
        (T + "apply_paths.py::test_absolute_links_start_at_the_root_wherever_they_stand",),
    ),
    Mutant(
        R + "tree.py",
        "            self._parents.forget()\n        elif",
        "            pass\n        elif",
        (T + "apply_paths.py::test_a_link_that_is_replaced_is_looked_up_again",),
    ),
    Mutant(
        R + "tree.py",
        "            self._parents.forget()\n            failure",
        "            failure",
        (T + "apply_paths.py::test_a_parent_that_became_a_link_is_looked_up_again",),
    ),
    gone(R + "beneath.py", 'b".." in path.split(b"/")', T + "beneath.py"),
    Mutant(R + "beneath.py", "RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS", "RESOLVE_BENEATH", (T + "beneath.py",)),
    Mutant(
        R + "beneath.py",
        "_IN_ROOT: Final = syscalls.RESOLVE_IN_ROOT | ",
        "_IN_ROOT: Final = ",
        (T + "beneath.py::test_in_root",),
    ),
    gone(R + "beneath.py", 'name in (b"", b".", b"..")', T + "beneath.py"),
    gone(R + "beneath.py", "self._hops > _HOPS", T + "beneath.py::test_a_long_chain_of_links_ends"),
    gone(R + "beneath.py", "os.fstat(child).st_dev != os.fstat(parent).st_dev", T + "beneath.py"),
    gone(R + "remove.py", "_identity(os.fstat(above)) != self._frames[-1].identity", T + "remove.py", "-k", "moved"),
)

TREE = (
    Mutant(
        R + "tree.py",
        "os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW",
        "os.O_CREAT | os.O_NOFOLLOW",
        (T + "apply_paths.py", "-k", "over_a_hard_link"),
    ),
    gone(R + "tree.py", "not (0 <= entry.uid <= _LAST_ID and 0 <= entry.gid <= _LAST_ID)", T + "apply_metadata.py", "-k", "owners"),
    gone(R + "tree.py", "not (0 <= entry.major <= _LAST_MAJOR and 0 <= entry.minor <= _LAST_MINOR)", T + "apply_metadata.py", "-k", "device"),
    gone(R + "tree.py", "len(self._directories) + len(self._hidden) >= self._limits.directories", T + "apply.py::test_directories_are_bounded"),
    gone(R + "tree.py", "self._remembered_bytes > self._limits.remembered_bytes", T + "apply_whiteouts.py", "-k", "remembered"),
    gone(R + "tree.py", 'path.count(b"/") >= self._limits.depth', T + "apply_paths.py", "-k", "depth or deep"),
    Mutant(
        R + "tree.py",
        "return not stat.S_ISDIR(status.st_mode) and not is_whiteout(status)",
        "return True",
        (T + "apply_paths.py::test_hard_links_need_a_target_in_this_layer",),
    ),
    Mutant(
        R + "tree.py",
        'raise LayerRejected("it is a hard link to itself")',
        "return",
        (T + "apply_paths.py::test_hard_links_need_a_target_in_this_layer",),
    ),
    Mutant(
        R + "tree.py",
        "(pair for pair in entry.xattrs if pair[0] != CAPABILITY)",
        "entry.xattrs[:0]",
        (T + "apply_metadata.py::test_user_attributes",),
    ),
    Mutant(
        R + "leaf.py",
        "dst_dir_fd=directory, follow_symlinks=False)",
        "dst_dir_fd=directory, follow_symlinks=True)",
        (T + "apply_paths.py::test_a_hard_link_to_a_link_links_the_link",),
    ),
    Mutant(
        R + "leaf.py",
        "dir_fd=directory, follow_symlinks=False)\n\n\ndef write(",
        "dir_fd=directory)\n\n\ndef write(",
        (T + "apply_paths.py::test_a_hard_link_to_a_link_links_the_link", T + "apply_metadata.py::test_times"),
    ),
    Mutant(R + "xattrs.py", "    if name.startswith(_OVERLAY):\n        return False\n", "", (T + "apply_metadata.py", "-k", "attributes")),
    Mutant(R + "tree.py", "        self.inodes += 1\n        self._check_depth(path)\n", "        self.inodes += 1\n", (T + "apply_paths.py", "-k", "depth")),
)  # fmt: skip

TAR = (
    gone(R + "tarheader.py", 'claimed != sum(struct.unpack("512b", block))', T + "tarstream.py::test_bad_archives"),
    gone(R + "tarheader.py", "entry.size_bytes < 0 and kind not in HEADER_ONLY", T + "tarstream.py::test_bad_archives"),
    Mutant(
        R + "tarheader.py",
        '        raise LayerRejected("not a tar header: a number is out of range")',
        "        pass",
        (T + "tarheader.py",),
    ),
    Mutant(R + "tarheader.py", " or data[end - 1] != 0x0A:", ":", (T + "tarheader.py",)),
    Mutant(R + "tarheader.py", "end > len(data) or ", "", (T + "tarheader.py",)),
    gone(R + "tarheader.py", "0 in (value if key in _STRINGS else key)", T + "tarheader.py"),
    gone(R + "tarheader.py", "count > limits.records", T + "tarstream.py::test_limits"),
    gone(R + "tarstream.py", "entry.kind not in KINDS", T + "tarstream.py::test_bad_archives"),
    gone(R + "tarstream.py", "0 in entry.name or 0 in entry.link", T + "apply_paths.py::test_nul_is_refused"),
    gone(R + "tarstream.py", "self.entries > self._limits.entries", T + "tarstream.py::test_limits"),
    gone(R + "tarstream.py", "size > self._limits.header_bytes", T + "tarstream.py::test_limits"),
    gone(R + "tarstream.py", "max(len(entry.name), len(entry.link)) > self._limits.path_bytes", T + "tarstream.py::test_limits"),
    gone(R + "tarstream.py", "self._sparse_bytes > self._limits.unpacked_bytes", T + "tarstream.py::test_limits"),
    gone(R + "tarstream.py", "self._extensions > _EXTENSIONS_PER_ENTRY * self._limits.entries", T + "tarstream.py::test_limits"),
    gone(R + "tarstream.py", "missing and missing != BLOCK_BYTES", T + "tarstream.py::test_bad_archives"),
    gone(R + "tarsparse.py", "end > entry.size_bytes or entry.size_bytes < 0", T + "tarstream.py::test_bad_archives"),
    gone(R + "tarsparse.py", "offset < end or length < 0", T + "tarstream.py::test_bad_archives"),
    gone(R + "tarsparse.py", "not 0 <= count <= limits.records", T + "tarstream.py::test_limits"),
)  # fmt: skip

STREAMS = (
    gone(R + "apply.py", "self.size_bytes > self._limits.unpacked_bytes", T + "apply.py::test_bombs"),
    gone(R + "apply.py", "self.size_bytes > max(self._limits.ratio_floor_bytes, self._limits.ratio * self._blob.size_bytes)", T + "apply.py::test_bombs"),
    gone(R + "compression.py", "window_bytes > self._window_bytes", T + "compression.py", "-k", "window or segments"),
    gone(R + "compression.py", "bytes(piece).count(0) != len(piece)", T + "compression.py::test_bad_gzip"),
    gone(R + "compression.py", "fixed[:3] != _GZIP", T + "compression.py::test_bad_gzip"),
    gone(R + "compression.py", "flags & 0xE0", T + "compression.py::test_bad_gzip"),
    gone(R + "compression.py", "end < 0 and not room", T + "compression.py::test_headers_of_members_are_bounded"),
    gone(R + "compression.py", "self._frame is None or not self._frame.eof", T + "compression.py"),
    gone(R + "watermarks.py", "count_bytes > self._size_bytes or (kind == END and count_bytes != self._size_bytes)", T + "watermarks.py"),
    gone(R + "child.py", "applied.blob != order.blob", T + "child.py::test_what_was_read_must_be_what_was_promised"),
    gone(R + "child.py", "applied.blob_size_bytes != order.size_bytes", T + "child.py::test_the_number_of_bytes_is_compared_too"),
)  # fmt: skip

LIVE = (
    T + "sandbox.py",
    "-k",
    "test_every_part or capabilities or privilege or namespaces or root or limits or dies_with_the_helper",
)
PARTS = {
    "parent-death": "_die_with_parent", "root": "_own_root", "rlimits": "_set_limits", "undumpable": "_hide_memory",
    "bounding-set": "_drop_bounding_set", "capabilities": "_cut_capabilities", "no-new-privs": "_forbid_privileges",
    "seccomp": "_filter_calls",
}  # fmt: skip
SANDBOX = (
    *(
        # The name stays, so that the part seems to be had.
        Mutant(R + "sandbox.py", f'("{part}", {step}),', f'("{part}", lambda _: None),', LIVE)
        for part, step in PARTS.items()
        if part not in ("undumpable", "no-new-privs")
    ),
    # The zygote gives this up before its children do.
    Mutant(R + "capabilities.py", "syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)", "pass", LIVE),
    Mutant(
        R + "sandbox.py",
        '("undumpable", _hide_memory),',
        '("undumpable", lambda _: None),',
        (T + "sandbox.py::test_without_privileges_what_can_be_had_is_had",),
    ),
    Mutant(R + "sandbox.py", "syscalls.MOUNT_ATTR_NODEV | ", "", LIVE),
    Mutant(R + "sandbox.py", "    | capabilities.MKNOD\n", "    | capabilities.MKNOD | 1 << 21\n", LIVE),
    Mutant(R + "sandbox.py", "    _set_limit(resource.RLIMIT_CORE, 0)\n", "", LIVE),
    Mutant(R + "sandbox.py", "syscalls.CLONE_NEWNET | ", "", LIVE),
    Mutant(R + "child.py", "    _close_from(above)\n", "", (T + "sandbox.py::test_only_its_own_descriptors",)),
    Mutant(
        R + "seccomp.py",
        "_INSTRUCTION.pack(_IF_EQUAL, 1, 0, _AUDIT_ARCHITECTURES[architecture]),",
        "_INSTRUCTION.pack(_IF_EQUAL, 1, 1, _AUDIT_ARCHITECTURES[architecture]),",
        (T + "seccomp.py",),
    ),
    Mutant(R + "seccomp.py", "_X32_FIRST: Final = 0x40000000", "_X32_FIRST: Final = 0x7FFFFFFF", (T + "seccomp.py",)),
    Mutant(R + "seccomp.py", "_PROT_EXEC: Final = 4", "_PROT_EXEC: Final = 8", (T + "seccomp.py",)),
    Mutant(R + "seccomp.py", "_CLONE_THREAD: Final = 0x00010000", "_CLONE_THREAD: Final = 0xFFFF0011", (T + "seccomp.py",)),
    Mutant(R + "seccomp.py", '    "socket": (41, 198),\n', "", (T + "sandbox.py", "-k", "socket")),
    Mutant(R + "seccomp.py", '    "execve": (59, 221),\n', "", (T + "sandbox.py", "-k", "exec")),
)  # fmt: skip

DOCUMENTS = (
    gone(C + "oci/strictjson.py", "len(value) != len(pairs)", "tests/oci/test_strictjson.py"),
    gone(C + "oci/strictjson.py", "len(data) > limit", "tests/oci/test_strictjson.py"),
    gone(C + "oci/strictjson.py", "not math.isfinite(number)", "tests/oci/test_strictjson.py"),
    gone(C + "oci/strictjson.py", "not _INTEGER.fullmatch(digits)", "tests/oci/test_strictjson.py"),
    Mutant(C + "oci/strictjson.py", "    _check_depth(data)\n    try:", "    try:", ("tests/oci/test_strictjson.py",)),
    gone(C + "oci/fields.py", "name := known.variant(value)", "tests/oci/test_manifest.py"),
    gone(C + "oci/manifest.py", "len(shapes) > 1", "tests/oci/test_manifest.py"),
    gone(C + "oci/manifest.py", "promised and shape and promised != shape", "tests/oci/test_manifest.py"),
    gone(C + "oci/manifest.py", "len(manifest.layers) != len(config.diff_ids)", "tests/oci/test_manifest.py"),
    gone(C + "oci/manifest.py", "len(entries) > most_layers", "tests/oci/test_manifest.py"),
    gone(C + "oci/manifest.py", "len(entries) > MOST_ENTRIES", "tests/oci/test_manifest.py"),
    gone(C + "oci/manifest.py", "config.digest in sizes", "tests/oci/test_manifest.py"),
    gone(R + "digest.py", "len(encoded) != length or not _HEX.fullmatch(encoded)", T + "digest.py"),
    gone(
        R + "digest.py", "len(text) > _LONGEST or not text.isascii() or not _GRAMMAR.fullmatch(text)", T + "digest.py"
    ),
)

RECORD = (
    Mutant(R + "tree.py", " and base[:1] not in _ODD", "", (T + "apply_paths.py",)),
    Mutant(R + "tree.py", " and len(name) <= self._limits.depth", "", (T + "apply_paths.py", "-k", "depth")),
    Mutant(R + "tree.py", "self.replaced = self.replaced or not is_whiteout(status)", "pass", (T + "tarsplit.py",)),
    gone(R + "tarsplit.py", "self._size_bytes > self._limit_bytes", T + "tarsplit.py"),
    gone(R + "assemble.py", "len(rest) > LINE_BYTES", T + "assemble.py"),
    gone(R + "assemble.py", 'left or checksum.to_bytes(8, "big") != piece.checksum', T + "assemble.py"),
    gone(R + "assemble.py", "os.fstat(file).st_size != piece.size_bytes", T + "assemble.py"),
    gone(R + "assemble.py", "not stat.S_ISREG(os.fstat(file).st_mode)", T + "assemble.py"),
    gone(R + "assemble.py", "Digest.finished(found) != diff_id", T + "assemble.py"),
)

PRIVILEGES = (
    Mutant(R + "zygote.py", "    capabilities.keep_only(KEPT)\n", "", (T + "zygote.py",)),
    Mutant(R + "capabilities.py", 'len(os.listdir("/proc/self/task")) - 1', "0", ("tests/server/test_privileges.py",)),
    gone(C + "server/privileges.py", "missing and config.require_sandbox", "tests/server/test_privileges.py"),
)

MUTANTS = (*NAMES, *PARENTS, *TREE, *TAR, *STREAMS, *SANDBOX, *DOCUMENTS, *RECORD, *PRIVILEGES)
