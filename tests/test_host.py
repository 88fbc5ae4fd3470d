"""The platform of a machine, from uname and /proc/cpuinfo."""

from __future__ import annotations

import os

import pytest

from cri_shim.host import amd64_level, platform_of, this_platform
from cri_shim.oci.platforms import Platform, acceptable

V1 = "fpu cx8 cmov fxsr mmx syscall sse2 lm"
V2 = V1 + " cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3"
V3 = V2 + " abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
V4 = V3 + " avx512bw avx512cd avx512dq avx512f avx512vl"


def cpuinfo(**fields: str) -> str:
    one = "\n".join(f"{key.replace('_', ' ')}\t: {value}" for key, value in fields.items())
    return f"processor\t: 0\n{one}\n\nprocessor\t: 1\nflags\t\t: {V4}\nCPU architecture: 8\n"


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("", ""),
        (V1, ""),
        (V2, "v2"),
        (V3, "v3"),
        (V4, "v4"),
        (V2 + " avx avx2", "v2"),
        (V4.replace(" ssse3", ""), ""),
        (V4.replace(" movbe", ""), "v2"),
        (V4.replace(" avx512cd", ""), "v3"),
        (V3.replace("avx2", "avx22"), "v2"),
    ],
)
def test_amd64_levels(flags: str, level: str) -> None:
    assert amd64_level(flags.split()) == level
    assert platform_of("x86_64", cpuinfo(model_name="x: y", flags=flags)) == Platform("linux", "amd64", level)


@pytest.mark.parametrize("missing", sorted(set(V4.split()) - set(V1.split())))
def test_each_flag_counts(missing: str) -> None:
    level = amd64_level([flag for flag in V4.split() if flag != missing])
    assert level != "v4"
    assert missing not in {"v2": V2, "v3": V3, "": ""}[level].split()


@pytest.mark.parametrize(
    ("machine", "text", "expected"),
    [
        ("x86_64", "", Platform("linux", "amd64")),
        ("x86_64", "flags", Platform("linux", "amd64")),
        ("i686", cpuinfo(flags=V3), Platform("linux", "386")),
        ("i386", "", Platform("linux", "386")),
        ("aarch64", cpuinfo(CPU_architecture="8"), Platform("linux", "arm64")),
        ("armv8l", "", Platform("linux", "arm", "v8")),
        ("armv7l", "", Platform("linux", "arm", "v7")),
        ("armv7l", cpuinfo(CPU_architecture="7"), Platform("linux", "arm", "v7")),
        ("armv7l", cpuinfo(CPU_architecture="8"), Platform("linux", "arm", "v8")),
        (
            "armv6l",
            cpuinfo(model_name="ARMv6-compatible processor rev 7 (v6l)", CPU_architecture="7"),
            Platform("linux", "arm", "v6"),
        ),
        ("armv6l", "", Platform("linux", "arm", "v6")),
        ("armv5tel", cpuinfo(CPU_architecture="5TE"), Platform("linux", "arm", "v5")),
        ("armv4l", "", Platform("linux", "arm", "v5")),
        ("s390x", "", Platform("linux", "s390x")),
        ("ppc64le", "", Platform("linux", "ppc64le")),
        ("riscv64", "", Platform("linux", "riscv64")),
        ("loongarch64", "", Platform("linux", "loong64")),
    ],
)
def test_machines(machine: str, text: str, expected: Platform) -> None:
    assert platform_of(machine, text) == expected


def test_this_machine() -> None:
    found = this_platform()
    assert found.os == "linux"
    assert found in acceptable(found)
    if os.uname().machine == "x86_64":
        assert found.architecture == "amd64"
