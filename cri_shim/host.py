"""The platform of this machine, from what the kernel says of it.

`platform_of` decides, `this_platform` reads. The x86-64 level counts because images come as amd64/v2 and v3 by now, and
a program built for a level that the processor has not dies of SIGILL.
"""

from __future__ import annotations

import os
import re
from typing import Final

from cri_shim.oci.platforms import Platform, normalise

_CPUINFO: Final = "/proc/cpuinfo"
_CPUINFO_BYTES: Final = 1 << 16  # the first processor stands at the top, all of them are of one kind

# The x86-64 psABI's levels in the words of /proc/cpuinfo (pni is SSE3, abm is LZCNT; avx stands there only when the
# kernel saves its registers, which is OSXSAVE).
_AMD64_LEVELS: Final = (
    ("v2", frozenset(["cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"])),
    ("v3", frozenset(["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"])),
    ("v4", frozenset(["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"])),
)
_ARCHITECTURES: Final = {"i486": "386", "i586": "386", "i686": "386", "loongarch64": "loong64"}


def this_platform() -> Platform:
    """Read this machine's platform from uname and /proc/cpuinfo."""
    try:
        with open(_CPUINFO, "rb") as file:
            cpuinfo = file.read(_CPUINFO_BYTES).decode("utf-8", "replace")
    except OSError:
        cpuinfo = ""  # without /proc the oldest machine of the architecture is assumed
    return platform_of(os.uname().machine, cpuinfo)


def platform_of(machine: str, cpuinfo: str) -> Platform:
    """Give the platform of a Linux machine: *machine* as uname has it, *cpuinfo* the text of /proc/cpuinfo.

    `variant` is the x86-64 level (v1 is ""), or the ARM version; arm64 is taken for Armv8.0, as containerd does.
    """
    architecture = "arm" if machine.startswith("armv") else _ARCHITECTURES.get(machine, machine)
    platform = normalise(Platform("linux", architecture))
    if platform.architecture == "amd64":
        return Platform("linux", "amd64", amd64_level(_value(cpuinfo, "flags").split()))
    if platform.architecture == "arm":
        return Platform("linux", "arm", arm_version(machine, cpuinfo))
    return platform


def amd64_level(flags: list[str]) -> str:
    """Give the x86-64 level that a processor with these flags has: "v4", "v3", "v2", or "" for the first."""
    level = ""
    for name, needed in _AMD64_LEVELS:
        if not needed.issubset(flags):
            break
        level = name
    return level


def arm_version(machine: str, cpuinfo: str) -> str:
    """Give the version of a 32-bit ARM: "v5" to "v8".

    A Raspberry Pi 1 says "CPU architecture: 7" and is an ARMv6; its model name tells.
    """
    if _value(cpuinfo, "model name").lower().startswith("armv6-compatible"):
        return "v6"
    said = re.match(r"(?:armv)?([5-8])", _value(cpuinfo, "cpu architecture") or machine)
    return f"v{said.group(1)}" if said else "v5"


def _value(cpuinfo: str, key: str) -> str:
    """Give the first value that a key of /proc/cpuinfo has, "" when there is none."""
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip().lower() == key:
            return value.strip()
    return ""
