"""The system calls that an unpacking child may make, as a filter in the kernel.

Rule: what unpacking needs is allowed, what only an attacker would want ends the process, everything else answers
ENOSYS, so that a C library that tries something newer falls back. Numbers stand per architecture; an architecture that
is not in the table gets no filter, and says so.

The filter is classic BPF over `struct seccomp_data` (linux/seccomp.h): the number at 0, the architecture at 4, the low
half of argument i at 16 + 8i (both architectures are little-endian). The most frequent calls are compared first.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_IF_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_ALLOW: Final = 0x7FFF0000
_KILL: Final = 0x80000000  # SECCOMP_RET_KILL_PROCESS
_ERRNO: Final = 0x00050000

_NUMBER_AT: Final = 0
_ARCHITECTURE_AT: Final = 4
_FIRST_ARGUMENT_AT: Final = 16
_THIRD_ARGUMENT_AT: Final = 32

_AUDIT_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_FIRST: Final = 0x40000000
_PROT_EXEC: Final = 4
_CLONE_THREAD: Final = 0x00010000

# name: (x86_64, aarch64); -1 where the architecture has no such call. The order is the order of the comparisons.
_ALLOWED: Final[dict[str, tuple[int, int]]] = {
    "read": (0, 63),
    "write": (1, 64),
    "pread64": (17, 67),
    "openat2": (437, 437),
    "openat": (257, 56),
    "close": (3, 57),
    "utimensat": (280, 88),
    "mkdirat": (258, 34),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "fchmod": (91, 52),
    "fchmodat2": (452, 452),
    "futex": (202, 98),
    "unlinkat": (263, 35),
    "linkat": (265, 37),
    "symlinkat": (266, 36),
    "mknodat": (259, 33),
    "renameat2": (316, 276),
    "fsetxattr": (190, 7),
    "fgetxattr": (193, 10),
    "flistxattr": (196, 13),
    "fremovexattr": (199, 16),
    "newfstatat": (262, 79),
    "fstat": (5, 80),
    "statx": (332, 291),
    "getdents64": (217, 61),
    "lseek": (8, 62),
    "readlinkat": (267, 78),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "rt_sigaction": (13, 134),
    "restart_syscall": (219, 128),
    "sched_yield": (24, 124),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "gettid": (186, 178),
    "getpid": (39, 172),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "getrandom": (318, 278),
    "getrusage": (98, 165),
    "umask": (95, 166),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "pwrite64": (18, 68),
    "writev": (20, 66),
    "poll": (7, -1),
    "ppoll": (271, 73),
    "fcntl": (72, 25),
    "dup": (32, 23),
}

_FATAL: Final[dict[str, tuple[int, int]]] = {
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, -1),
    "vfork": (58, -1),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "accept": (43, 202),
    "accept4": (288, 242),
    "bind": (49, 200),
    "listen": (50, 201),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "sendmmsg": (307, 269),
    "recvmmsg": (299, 243),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "seccomp": (317, 277),
    "capset": (126, 91),
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "setgroups": (116, 159),
    "memfd_create": (319, 279),
    "swapon": (167, 224),
    "reboot": (169, 142),
}

_MMAP: Final = (9, 222)
_MPROTECT: Final = (10, 226)
_CLONE: Final = (56, 220)
_COLUMNS: Final = {"x86_64": 0, "aarch64": 1}

_INSTRUCTION: Final = struct.Struct("<HBBI")


def allowed_numbers(architecture: str) -> dict[str, int]:
    """Return the calls that are allowed whatever their arguments are, by name."""
    return _column(_ALLOWED, architecture)


def fatal_numbers(architecture: str) -> dict[str, int]:
    """Return the calls that end the process, by name."""
    return _column(_FATAL, architecture)


def _column(table: dict[str, tuple[int, int]], architecture: str) -> dict[str, int]:
    column = _COLUMNS[architecture]
    return {name: numbers[column] for name, numbers in table.items() if numbers[column] >= 0}


def program(architecture: str) -> bytes:
    """Return the filter for *architecture* as BPF instructions.

    Raises:
        OSError: ENOSYS, the architecture is not known here.
    """
    if architecture not in _AUDIT_ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"there is no system call filter for {architecture}")
    column = _COLUMNS[architecture]
    lines = [_entry(architecture)]
    lines += [_answer_if(number, _ALLOW) for number in allowed_numbers(architecture).values()]
    lines += [_if_no_bit(number[column], _THIRD_ARGUMENT_AT, _PROT_EXEC) for number in (_MMAP, _MPROTECT)]
    lines.append(_if_bit(_CLONE[column], _FIRST_ARGUMENT_AT, _CLONE_THREAD))
    lines += [_answer_if(number, _KILL) for number in fatal_numbers(architecture).values()]
    lines.append(_return(_ERRNO | errno.ENOSYS))
    return b"".join(lines)


def _return(answer: int) -> bytes:
    return _INSTRUCTION.pack(_RETURN, 0, 0, answer)


def _entry(architecture: str) -> bytes:
    """Refuse another architecture's calls, and x32 numbers on x86_64; leave the number loaded."""
    lines = [
        _INSTRUCTION.pack(_LOAD, 0, 0, _ARCHITECTURE_AT),
        _INSTRUCTION.pack(_IF_EQUAL, 1, 0, _AUDIT_ARCHITECTURES[architecture]),
        _return(_KILL),
        _INSTRUCTION.pack(_LOAD, 0, 0, _NUMBER_AT),
        _INSTRUCTION.pack(_IF_AT_LEAST, 0, 1, _X32_FIRST),
        _return(_KILL),
    ]
    return b"".join(lines)


def _answer_if(number: int, answer: int) -> bytes:
    return _INSTRUCTION.pack(_IF_EQUAL, 0, 1, number) + _return(answer)


def _if_no_bit(number: int, argument_at: int, bits: int) -> bytes:
    """Allow the call *number* without *bits* in the argument; with them it answers EPERM."""
    lines = [
        _INSTRUCTION.pack(_IF_EQUAL, 0, 4, number),
        _INSTRUCTION.pack(_LOAD, 0, 0, argument_at),
        _INSTRUCTION.pack(_IF_ANY_BIT, 0, 1, bits),
        _return(_ERRNO | errno.EPERM),
        _return(_ALLOW),
    ]
    return b"".join(lines)


def _if_bit(number: int, argument_at: int, bits: int) -> bytes:
    """Allow the call *number* with *bits* in the argument; without them it ends the process."""
    lines = [
        _INSTRUCTION.pack(_IF_EQUAL, 0, 4, number),
        _INSTRUCTION.pack(_LOAD, 0, 0, argument_at),
        _INSTRUCTION.pack(_IF_ANY_BIT, 1, 0, bits),
        _return(_KILL),
        _return(_ALLOW),
    ]
    return b"".join(lines)
