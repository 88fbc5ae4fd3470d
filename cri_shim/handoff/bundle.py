"""An image as an OCI bundle: config.json of the runtime specification, made of the image's config.

What an image asks for (args, env, cwd, user) comes from its config, as the image specification's conversion.md says;
everything else is what `runc spec` and podman give a container by default.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cri_shim.oci.fields import Fields, KnownKeys
from cri_shim.oci.strictjson import decode

if TYPE_CHECKING:
    from cri_shim.handoff.passwd import Identity

PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_KEYS: Final = KnownKeys("config")
_PROCESS_KEYS: Final = KnownKeys("Entrypoint", "Cmd", "Env", "WorkingDir", "User", "Labels", "StopSignal")
_CAPABILITIES: Final = (
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETFCAP"),
    *("CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"),
)
_MASKED: Final = (
    *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list"),
    *("/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"),
)
_READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_MOUNTS: Final = (
    ("/proc", "proc", "proc", ""),
    ("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
    ("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),  # noqa: S108 (in the container)
    ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
    ("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
    ("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro"),
)
_NAMESPACES: Final = ("pid", "network", "ipc", "uts", "mount")
_ABOUT_IMAGES: Final = "org.opencontainers.image."


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an image wants to run as, from its config."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: str
    labels: tuple[tuple[str, str], ...] = ()
    stop_signal: str = ""


def wanted_of(config: bytes) -> Wanted:
    """Read what the image config *config* asks for.

    Raises:
        ContentRejected: it is no image config.
        LimitExceeded: it is larger than 4 MiB.
    """
    process = Fields.of(decode(config), "config", _KEYS).child("config", _PROCESS_KEYS)
    if process is None:
        return Wanted((), (), "/", "")
    return Wanted(
        args=(*process.strings("Entrypoint"), *process.strings("Cmd")),
        env=process.strings("Env"),
        cwd=posixpath.join("/", process.text("WorkingDir")),
        user=process.text("User"),
        labels=process.pairs("Labels"),
        stop_signal=process.text("StopSignal"),
    )


def runtime_spec(wanted: Wanted, identity: Identity, hostname: str) -> dict[str, object]:
    """Return config.json for a container of an image whose tree is mounted at `rootfs` beside it."""
    return {
        "ociVersion": "1.0.2",
        "process": _process(wanted, identity),
        "root": {"path": "rootfs", "readonly": False},
        "hostname": hostname,
        "mounts": [_mount(*one) for one in _MOUNTS],
        "annotations": _annotations(wanted),
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in _NAMESPACES],
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
        },
    }


def _process(wanted: Wanted, identity: Identity) -> dict[str, object]:
    user: dict[str, object] = {"uid": identity.uid, "gid": identity.gid}
    if identity.groups:
        user["additionalGids"] = list(identity.groups)
    sets = ("bounding", "effective", "permitted") if identity.uid == 0 else ("bounding",)
    return {
        "terminal": False,
        "user": user,
        "args": list(wanted.args) or ["sh"],
        "env": _environment(wanted.env, identity.home),
        "cwd": wanted.cwd,
        "capabilities": {kind: list(_CAPABILITIES) for kind in sets},
        "noNewPrivileges": True,
    }


def _environment(given: tuple[str, ...], home: str) -> list[str]:
    names = {one.partition("=")[0] for one in given}
    more = [one for one in (PATH, f"HOME={home}") if one.partition("=")[0] not in names]
    return [*given, *more]


def _annotations(wanted: Wanted) -> dict[str, str]:
    """Return what the image says about itself.

    Other labels stay out: to a runtime annotations are orders, given by whoever starts it. crun would load libraries
    (`run.oci.seccomp.plugins`) and run hooks as root on the node, runc would set properties of systemd's units.
    """
    stop = {f"{_ABOUT_IMAGES}stopSignal": wanted.stop_signal} if wanted.stop_signal else {}
    return {**stop, **{key: value for key, value in wanted.labels if key.startswith(_ABOUT_IMAGES)}}


def _mount(destination: str, kind: str, source: str, options: str) -> dict[str, object]:
    said: dict[str, object] = {"destination": destination, "type": kind, "source": source}
    return {**said, "options": options.split(",")} if options else said
