"""The filter, run instruction by instruction as the kernel would."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from rootfs import seccomp

HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}
ARCHITECTURES = sorted(HEADERS)
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL = 0x7FFF0000, 0x80000000
ENOSYS, EPERM = 0x50000 | errno.ENOSYS, 0x50000 | errno.EPERM


def evaluate(program, number, arguments=(0,) * 6, architecture=None, *, audit=None):
    """Run classic BPF over a `struct seccomp_data`."""
    data = struct.pack("<IIQ6Q", number, audit if audit is not None else AUDIT[architecture], 0, *arguments)
    lines = list(struct.iter_unpack("<HBBI", program))
    accumulator, at = 0, 0
    while True:
        code, yes, no, value = lines[at]
        at += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif code == 0x06:
            return value
        else:
            taken = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            at += yes if taken else no


def header_numbers(architecture):
    text = Path(HEADERS[architecture]).read_text()
    return {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_numbers_are_those_of_the_headers(architecture):
    if not Path(HEADERS[architecture]).exists():
        pytest.skip("no kernel headers here")
    real = header_numbers(architecture)
    # The generic table names two calls after their 64 bit forms.
    real |= {"newfstatat": real.get("newfstatat", real.get("fstatat", 79))}
    ours = {**seccomp.allowed_numbers(architecture), **seccomp.fatal_numbers(architecture)}
    assert {name: real[name] for name in ours if name in real} == {
        name: number for name, number in ours.items() if name in real
    }
    assert set(ours) - set(real) <= {"fchmodat2"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_number_has_the_answer_of_its_table(architecture):
    program = seccomp.program(architecture)
    allowed = set(seccomp.allowed_numbers(architecture).values())
    fatal = set(seccomp.fatal_numbers(architecture).values())
    column = ("x86_64", "aarch64").index(architecture)
    by_argument = {pair[column] for pair in (seccomp._MMAP, seccomp._MPROTECT, seccomp._CLONE)}
    assert not allowed & fatal
    for number in range(600):
        if number in by_argument:
            continue
        expected = ALLOW if number in allowed else KILL if number in fatal else ENOSYS
        assert evaluate(program, number, architecture=architecture) == expected, number


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_memory_may_not_become_code(architecture):
    program = seccomp.program(architecture)
    column = ("x86_64", "aarch64").index(architecture)
    for number in (seccomp._MMAP[column], seccomp._MPROTECT[column]):
        for protection, expected in ((0, ALLOW), (1, ALLOW), (3, ALLOW), (4, EPERM), (5, EPERM), (7, EPERM)):
            arguments = (0, 0, protection, 0, 0, 0)
            assert evaluate(program, number, arguments, architecture) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_thread_may_start_and_a_process_may_not(architecture):
    program = seccomp.program(architecture)
    number = seccomp._CLONE[("x86_64", "aarch64").index(architecture)]
    assert evaluate(program, number, (0x3D0F00, 0, 0, 0, 0, 0), architecture) == ALLOW
    assert evaluate(program, number, (17, 0, 0, 0, 0, 0), architecture) == KILL
    assert evaluate(program, number, (0x10000000, 0, 0, 0, 0, 0), architecture) == KILL
    assert evaluate(program, 435, (0,) * 6, architecture) == ENOSYS


def test_another_architecture_or_x32_is_the_end():
    program = seccomp.program("x86_64")
    assert evaluate(program, 0, audit=0x40000003) == KILL
    assert evaluate(program, 0x40000000, architecture="x86_64") == KILL
    assert evaluate(program, 0x40000000 | 1, architecture="x86_64") == KILL
    assert evaluate(seccomp.program("aarch64"), 63, audit=0xC000003E) == KILL


def test_an_unknown_architecture_has_no_filter():
    with pytest.raises(OSError, match="no system call filter for riscv64") as caught:
        seccomp.program("riscv64")
    assert caught.value.errno == errno.ENOSYS


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_jumps_stay_inside(architecture):
    lines = list(struct.iter_unpack("<HBBI", seccomp.program(architecture)))
    assert len(lines) < 4096
    assert all(at + 1 + max(yes, no) < len(lines) for at, (code, yes, no, _) in enumerate(lines) if code & 7 == 5)
