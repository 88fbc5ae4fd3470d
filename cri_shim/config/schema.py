"""Every key of the configuration: its type, its default, its meaning. A key that is not here does not exist.

Sizes are bytes and durations seconds, and their names say so. A rule about a value stands in its type, so that the
file, the environment and the flags are checked by the same words.
"""

# ruff: noqa: RUF009 (`_key` is `dataclasses.field` with the meaning of the key)

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from msgspec import Meta

Count = Annotated[int, Meta(ge=1, le=1 << 62, description="a whole number from 1 on")]
Room = Annotated[int, Meta(ge=0, le=1 << 62, description="a whole number of bytes")]
AtMost1000 = Annotated[int, Meta(ge=1, le=1000, description="a whole number from 1 to 1000")]
Weight = Annotated[int, Meta(ge=10, le=1000, description="a whole number from 10 to 1000")]
Niceness = Annotated[int, Meta(ge=0, le=19, description="a whole number from 0 to 19")]
Patience = Annotated[int, Meta(ge=1, le=86_400, description="a whole number of seconds from 1 to 86400")]
Seconds = Annotated[int, Meta(ge=0, le=86_400, description="a whole number of seconds, 86400 at most")]
Staleness = Annotated[int, Meta(ge=0, le=2_592_000, description="a whole number of seconds, 2592000 (30 days) at most")]
Days = Annotated[int, Meta(ge=0, le=3650, description="a whole number of days, 3650 at most")]
AbsolutePath = Annotated[str, Meta(pattern=r"\A/[^\x00-\x1f\x7f]*\Z", max_length=4096, description="an absolute path")]
OptionalPath = Annotated[
    str, Meta(pattern=r"\A(/[^\x00-\x1f\x7f]*)?\Z", max_length=4096, description="an absolute path, or empty")
]
# The root stands in mount options, where a comma, a colon or a backslash would mean something else.
StorePath = Annotated[
    str,
    Meta(
        pattern=r"\A/[^\x00-\x20\x7f,:\\\"]+\Z",
        max_length=200,
        description="an absolute path of at most 200 characters without space, comma, colon, quote or backslash",
    ),
]
# gRPC reads the address as a URI, where some letters would mean something else.
SocketAddress = Annotated[
    str,
    Meta(
        pattern=r"\A(unix://)?/[A-Za-z0-9._/@+=-]+\Z",
        max_length=4096,
        description="an absolute path of letters, digits and ._/@+=-, or unix:// and one",
    ),
]
# Numbers only: a name would have to be resolved, and could come to mean more than this node.
Listen = Annotated[
    str,
    Meta(
        pattern=r"\A((([0-9]{1,3}\.){3}[0-9]{1,3}|\[[0-9a-fA-F:.]{2,45}\]):)?[0-9]{1,5}\Z|\A\Z",
        description="a port, or an address in numbers and a port (127.0.0.1:9410, [::1]:9410), or empty",
    ),
]
Mode = Annotated[str, Meta(pattern=r"\A0?[0-7]{3}\Z", description='an octal mode in quotes, such as "0660"')]
Group = Annotated[int, Meta(ge=-1, le=0xFFFFFFFE, description="the number of a group, or -1")]
Word = Annotated[str, Meta(min_length=1, max_length=512, description="a text of 1 to 512 characters")]
OptionalName = Annotated[str, Meta(max_length=512, description="a text of at most 512 characters")]
NameBytes = Annotated[int, Meta(ge=1, le=4095, description="a whole number from 1 to 4095")]
Layers = Annotated[int, Meta(ge=1, le=500, description="a whole number from 1 to 500")]

Runtime = Literal["none", "containerd", "cri-o"]
HandOffName = Literal["containers-storage", "containerd"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json", "klog"]
Sync = Literal["syncfs", "fsync", "off"]
StopOrIgnore = Literal["stop", "ignore"]
StopIgnoreOrRead = Literal["stop", "ignore", "read"]
ForeignLayers = Literal["refuse", "fetch"]


def _key(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """The section `[limits]`: what a layer, or a document about it, may cost at most."""

    unpacked_bytes: Count = _key(64 << 30, "A layer's blob, its uncompressed tar, and the files in it together: each.")
    entries: Count = _key(5_000_000, "Entries of a layer.")
    directories: Count = _key(500_000, "Directories of a layer.")
    remembered_bytes: Count = _key(64 << 20, "The paths of all directories of a layer.")
    tar_split_bytes: Count = _key(1 << 30, "The record of a layer's tar; a layer with a longer one is kept without it.")
    ratio: Count = _key(1000, "Uncompressed bytes for each compressed one; counted beyond ratio_floor_bytes.")
    ratio_floor_bytes: Count = _key(1 << 30, "Up to here any ratio is allowed.")
    window_bytes: Count = _key(128 << 20, "What a zstd frame may ask to remember.")
    header_bytes: Count = _key(1 << 20, "One extended header of a tar.")
    records: Count = _key(65_536, "Records in one extended header.")
    depth: Count = _key(512, "Directories above an entry.")
    path_bytes: NameBytes = _key(4095, "A name in a layer.")
    layers: Layers = _key(127, "Layers of an image.")


@dataclass(frozen=True, slots=True)
class PrepullConfig:
    """The section `[prepull]`: what the node is to have before anybody asks. It is pinned."""

    sandbox: OptionalName = _key(
        "",
        "The image of pod sandboxes, as the runtime's configuration names it (sandbox_image, pinned_images.sandbox,\n"
        "pause_image); it goes first. Runtimes do not fetch it from here: without it no pod starts. Empty: none.",
    )
    images: tuple[Word, ...] = _key((), "More images, by name.")
    retry_seconds: Patience = _key(300, "The longest pause between two tries; it begins with a second and doubles.")


@dataclass(frozen=True, slots=True)
class CheckConfig:
    """The section `[check]`: what is done in the background against a disk that forgets."""

    days: Days = _key(
        30,
        "How often everything is read and compared with its digests while nothing is pulled, at the lowest priority.\n"
        "A stopped check goes on where it was. 0: never.",
    )
    bytes_per_second: Count = _key(32 << 20, "How much is read at most.")
    repair: bool = _key(
        True,
        "Pull again what is damaged, by its digest, without a credential or with the node's own. What cannot be\n"
        "repaired so, or with false, is repaired by the next pull: kubelet is told that the image is not here.",
    )


@dataclass(frozen=True, slots=True)
class Config:
    """The top level of the file, and its sections."""

    version: Literal[1] = _key(1, "The version of this file's format.")
    listen: SocketAddress = _key(
        "/run/cri-shim/cri-shim.sock",
        "The socket that kubelet and crictl talk to. A path, or unix:// and a path.",
    )
    socket_mode: Mode = _key("0660", "Its mode, octal. Who may write to the socket may pull and remove images.")
    socket_gid: Group = _key(-1, "Its group; -1 leaves the daemon's own.")
    root: StorePath = _key(
        "/var/lib/cri-shim",
        "Where images lie. Made with mode 0700. Keep it short: it stands in mount options once per layer.",
    )
    state: AbsolutePath = _key("/run/cri-shim", "Where the admin socket and the lock lie. Made with mode 0711.")
    runtime: Runtime = _key(
        "none",
        "The runtime of this node; it decides how ids are spelled: none and containerd as sha256:<hex>,\n"
        "cri-o as <hex>. Must be right, or kubelet takes images in use for unused and removes them.",
    )
    publish: tuple[HandOffName, ...] = _key(
        (),
        "Who else is given the images, besides `runtime`: containers-storage (podman, buildah, skopeo: the root is an\n"
        "additional image store), containerd. Runtime cri-o implies the first, containerd the second.",
    )
    containerd_address: SocketAddress = _key(
        "/run/containerd/containerd.sock", "The socket of the containerd that is given images (its `grpc.address`)."
    )
    containerd_root: StorePath = _key(
        "/var/lib/containerd",
        "That containerd's `root`. On the same filesystem and mount as `root`, or files are copied.",
    )
    containers_storage_roots: tuple[AbsolutePath, ...] = _key(
        ("/var/lib/containers/storage",),
        "Where CRI-O and podman keep what is their own (graphroot): an image that is named in records there stays.",
    )
    log_level: LogLevel = _key("info", "The least that is logged: debug, info, warning or error.")
    log_format: LogFormat = _key("text", "text (time, level, msg as logrus has them), json or klog.")
    metrics_listen: Listen = _key(
        "",
        "Where /metrics, /healthz and /readyz are served over HTTP: a port on the loopback (9410), or an address and\n"
        "a port. Anybody who reaches it may read it. Empty: nowhere but on the admin socket.",
    )
    drain_seconds: Seconds = _key(30, "How long running pulls may go on after SIGTERM.")
    sync: Sync = _key(
        "syncfs",
        "How a layer is brought to the disk before it counts: syncfs (its filesystem), fsync (each file), or off\n"
        "(fast; after a power cut images may be damaged without a word).",
    )
    tar_split: bool = _key(
        True,
        "Keep beside each layer what its tar had besides files: without it the layer cannot be pushed, saved or\n"
        "verified later. Costs 50 bytes for each file or so.",
    )
    require_sandbox: bool = _key(
        False,
        "Refuse to start when a part of the unpacker's confinement is missing on this node.",
    )
    pull_grace_seconds: Seconds = _key(
        30, "How long a pull goes on after its last caller has left, so that the next one finds it well under way."
    )
    partial_bytes: Room = _key(
        16 << 30, "How much of layers that did not arrive whole is kept for the next pull to go on with; 0: nothing."
    )
    partial_seconds: Staleness = _key(86_400, "How long it is kept.")
    max_downloads: AtMost1000 = _key(
        8, "Layers that are downloaded at once, in all; the last place is for an image without one."
    )
    max_downloads_per_image: AtMost1000 = _key(6, "Layers of one image that are downloaded at once.")
    connections_per_layer: AtMost1000 = _key(
        6,
        "Connections that fetch one layer at once, each its part; more than one for large layers only, of hosts that\n"
        "have ranges and strong ETags, and while more comes with more of them. 1: never several.",
    )
    connections_per_host: AtMost1000 = _key(12, "Connections to one host up to which a layer may get another one.")
    max_connections: AtMost1000 = _key(24, "The same to all hosts. Each takes a MiB of memory.")
    bytes_per_second_per_host: Room = _key(0, "Bytes of layers that may come from one host per second; 0: any number.")
    max_bytes_per_second: Room = _key(0, "The same from all hosts; 0: any number.")
    system_namespaces: tuple[Word, ...] = _key(
        ("kube-system",), "Namespaces of pods whose images weigh `system_weight`; all others weigh 100."
    )
    system_weight: Weight = _key(
        400, "Where bytes or turns are limited, an image of twice the weight gets twice as many per second."
    )
    weight_annotation: OptionalName = _key(
        "",
        "An annotation of pods that has the weight of their images, 10 to 1000, whatever their namespace. Whoever may\n"
        "write pods may then give them any. Empty: none.",
    )
    max_unpacks: AtMost1000 = _key(4, "Layers that are unpacked at once, in all.")
    unpack_cpus: OptionalName = _key("", "The processors that layers are worked on, such as 0-3,8. Empty: all.")
    unpack_nice: Niceness = _key(0, "How nice that work is to everything else on the node.")
    unpack_cgroup: OptionalPath = _key(
        "", "The directory of a cgroup for that work, which is there when the daemon starts. Empty: the daemon's own."
    )
    pinned: tuple[Word, ...] = _key(
        (),
        "Images that kubelet shall not collect, by name: exact, with a star at the end (registry.k8s.io/pause*),\n"
        "or with one at both ends (*pause*). Case does not matter.",
    )
    runtime_handlers: tuple[Word, ...] = _key(
        (),
        "The runtime handlers of this node (of RuntimeClass). When there are any, a pull for another one is refused.\n"
        "All of them share the images.",
    )
    kubelet_root_dir: AbsolutePath = _key(
        "/var/lib/kubelet",
        "kubelet's --root-dir: the first place where config.json is looked for.",
    )
    kubelet_cwd: AbsolutePath = _key("/", "kubelet's working directory: the second place for config.json.")
    home: OptionalPath = _key(
        "/root",
        "The home directory whose .docker/config.json and .dockercfg are read, as kubelet would read its own.\n"
        "It is set here: the daemon's own HOME is not looked at.",
    )
    keyring_merge: bool = _key(False, "Take credentials from every file that is found, not from the first one only.")
    anonymous: bool = _key(True, "Try without credentials when those at hand were refused.")
    stale_if_unreachable_seconds: Staleness = _key(
        0,
        "While a registry cannot be reached, an image that is here serves whoever shows the credential that opened it\n"
        "there within so many seconds before; 0: nobody.",
    )
    request_credentials: bool = _key(True, "Use the credentials that come with a pull.")
    keyring: bool = _key(True, "Use the kubelet's credential files: config.json and .dockercfg in its search paths.")
    credential_helpers: bool = _key(
        True, "Ask the helpers that credential files name: credHelpers and credsStore, docker-credential-NAME."
    )
    credential_helper_seconds: Seconds = _key(10, "How long a helper may take.")
    credential_path: Word = _key(
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PATH for helpers and providers, and where helpers are looked for.",
    )
    credential_environment: tuple[Word, ...] = _key(
        ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
        "Variables of the daemon's environment that helpers and providers get as well.",
    )
    credential_provider_config: OptionalPath = _key(
        "",
        "kubelet's --image-credential-provider-config: a file, or a directory of files. Read at start. Empty: none.",
    )
    credential_provider_bin_dir: OptionalPath = _key("", "kubelet's --image-credential-provider-bin-dir.")
    credential_provider_seconds: Seconds = _key(60, "How long a provider may take.")
    auth_json: bool = _key(False, "Use containers' auth.json files too, after the kubelet's.")
    auth_json_runtime_dir: OptionalPath = _key("/run/containers/0", "The directory of the first auth.json.")
    auth_json_config_home: OptionalPath = _key(
        "", "The directory that holds containers/auth.json; empty stands for .config in `home`."
    )
    auth_json_file: OptionalPath = _key("", "One auth.json instead of all others, as REGISTRY_AUTH_FILE names it.")
    certs_dirs: tuple[AbsolutePath, ...] = _key(
        ("/etc/containerd/certs.d", "/etc/docker/certs.d", "/etc/containers/certs.d"),
        "Directories of registry hosts, one folder per registry with a hosts.toml, as containerd has them, or with\n"
        "the certificate files of docker and containers (*.crt, and *.cert with *.key).\n"
        "The first directory that knows a registry decides.",
    )
    insecure: tuple[Word, ...] = _key(
        (),
        "Registries, as image names spell them (host or host:port), whose certificate is not verified, and which may\n"
        "speak http on a port of their own. Where a hosts.toml is, its own keys count.",
    )
    no_fallback: tuple[Word, ...] = _key(
        (),
        "Registries (docker.io) of which only the mirrors in hosts.toml are asked, never the registry itself.\n"
        "A star stands for all of them.",
    )
    mirror_stall_seconds: Patience = _key(
        20, "How long a host may say nothing when another one can be asked. The last one may for 60 seconds."
    )
    progress_seconds: Patience = _key(
        300, "A layer, or a document, of which no byte came for so long has failed, whichever hosts were asked."
    )
    host_proxies: tuple[Word, ...] = _key(
        (),
        "Proxies by host, each HOST=URL or HOST=direct; HOST as in NO_PROXY (name, .domain, address, network, :port).\n"
        "They go before HTTP_PROXY, HTTPS_PROXY and NO_PROXY, which are read from the environment at start, and from\n"
        "which the user and password of a proxy are taken: here they have no place.",
    )
    proxy_ca: OptionalPath = _key(
        "", "A PEM file of CAs that proxies spoken to over TLS (https://) are trusted by, besides the system's."
    )
    realm_same_site: bool = _key(False, "Ask for tokens only at the site of the registry that wants them.")
    foreign_layers: ForeignLayers = _key(
        "refuse",
        "Layers that only their maker distributes: refuse, or fetch (from the https URLs in the manifest, at public\n"
        "addresses, without credentials).",
    )
    containers_dir: AbsolutePath = _key("/etc/containers", "Where policy.json and registries.conf of containers lie.")
    policy_json: StopOrIgnore = _key(
        "stop",
        "What to do when containers' policy.json on this node restricts anything, which is not followed here: stop\n"
        "(do not start), or ignore.",
    )
    registries_conf: StopIgnoreOrRead = _key(
        "stop",
        "The same for registries.conf and its drop-ins, when they block a registry or read it from elsewhere; or\n"
        "read, to follow them: short names, mirrors, locations, blocked registries. Read at start and on SIGHUP.",
    )
    adopt: bool = _key(
        False,
        "When there is no image here yet, take over those that the runtime has pulled itself: containerd's, from its\n"
        "content store, or CRI-O's, from containers_storage_roots. What was begun goes on at the next start.",
    )
    prepull: PrepullConfig = field(default_factory=PrepullConfig)
    check: CheckConfig = field(default_factory=CheckConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)


Key = Field[Any]


@cache
def types_of(section: type) -> dict[str, Any]:
    """Return the type of every key of *section*, its rules included."""
    return get_type_hints(section, include_extras=True)


def keys_of(section: type) -> tuple[Key, ...]:
    """Return the keys of *section* in order, without the sections below it."""
    return tuple(key for key in fields(section) if not is_section(types_of(section)[key.name]))


def sections_of(section: type) -> dict[str, type]:
    """Return the sections below *section* by name."""
    return {name: kind for name, kind in types_of(section).items() if is_section(kind)}


def is_section(kind: Any) -> bool:
    """Tell whether a type stands for a table of the file."""
    return isinstance(kind, type) and is_dataclass(kind)
