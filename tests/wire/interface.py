"""The CRI as clients of other Kubernetes versions know it: descriptors built from tables, and messages of them.

Each version is the newest one less what came after it. `FUTURE` is one that nobody has yet: the newest with another
field in every message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Rows = Mapping[str, str]
PACKAGE = "runtime.v1"
FIELD = re.compile(r"(\w+) = (\d+) : (repeated )?(map<string,string>|\w+)")
SCALARS = {"string": 9, "bool": 8, "int32": 5, "int64": 3, "uint32": 13, "uint64": 4}
ENUMS = {
    "Protocol": ("TCP", "UDP", "SCTP"),
    "SupplementalGroupsPolicy": ("Merge", "Strict"),
    "NamespaceMode": ("POD", "CONTAINER", "NODE", "TARGET"),
    "ProfileType": ("RuntimeDefault", "Unconfined", "Localhost"),
}

# cri-api 0.36, the fields of every message that an image service meets: name = number : type.
NEWEST: Rows = {
    "ListImagesRequest": "filter = 1 : ImageFilter",
    "ImageFilter": "image = 1 : ImageSpec",
    "ImageSpec": "image = 1 : string, annotations = 2 : map<string,string>, user_specified_image = 18 : string,"
    " runtime_handler = 19 : string, image_ref = 20 : string",
    "ListImagesResponse": "images = 1 : repeated Image",
    "Image": "id = 1 : string, repo_tags = 2 : repeated string, repo_digests = 3 : repeated string, size = 4 : uint64,"
    " uid = 5 : Int64Value, username = 6 : string, spec = 7 : ImageSpec, pinned = 8 : bool",
    "Int64Value": "value = 1 : int64",
    "StreamImagesRequest": "filter = 1 : ImageFilter",
    "StreamImagesResponse": "images = 1 : repeated Image",
    "ImageStatusRequest": "image = 1 : ImageSpec, verbose = 2 : bool",
    "ImageStatusResponse": "image = 1 : Image, info = 2 : map<string,string>",
    "PullImageRequest": "image = 1 : ImageSpec, auth = 2 : AuthConfig, sandbox_config = 3 : PodSandboxConfig",
    "AuthConfig": "username = 1 : string, password = 2 : string, auth = 3 : string, server_address = 4 : string,"
    " identity_token = 5 : string, registry_token = 6 : string",
    "PodSandboxConfig": "metadata = 1 : PodSandboxMetadata, hostname = 2 : string, log_directory = 3 : string,"
    " dns_config = 4 : DNSConfig, port_mappings = 5 : repeated PortMapping, labels = 6 : map<string,string>,"
    " annotations = 7 : map<string,string>, linux = 8 : LinuxPodSandboxConfig, windows = 9 : WindowsPodSandboxConfig",
    "PodSandboxMetadata": "name = 1 : string, uid = 2 : string, namespace = 3 : string, attempt = 4 : uint32",
    "DNSConfig": "servers = 1 : repeated string, searches = 2 : repeated string, options = 3 : repeated string",
    "PortMapping": "protocol = 1 : Protocol, container_port = 2 : int32, host_port = 3 : int32, host_ip = 4 : string",
    "LinuxPodSandboxConfig": "cgroup_parent = 1 : string, security_context = 2 : LinuxSandboxSecurityContext,"
    " sysctls = 3 : map<string,string>, overhead = 4 : LinuxContainerResources, resources = 5 : LinuxContainerResources",
    "LinuxSandboxSecurityContext": "namespace_options = 1 : NamespaceOption, selinux_options = 2 : SELinuxOption,"
    " run_as_user = 3 : Int64Value, run_as_group = 8 : Int64Value, readonly_rootfs = 4 : bool,"
    " supplemental_groups = 5 : repeated int64, supplemental_groups_policy = 11 : SupplementalGroupsPolicy,"
    " privileged = 6 : bool, seccomp = 9 : SecurityProfile, apparmor = 10 : SecurityProfile,"
    " seccomp_profile_path = 7 : string",
    "NamespaceOption": "network = 1 : NamespaceMode, pid = 2 : NamespaceMode, ipc = 3 : NamespaceMode,"
    " target_id = 4 : string, userns_options = 5 : UserNamespace",
    "UserNamespace": "mode = 1 : NamespaceMode, uids = 2 : repeated IDMapping, gids = 3 : repeated IDMapping",
    "IDMapping": "host_id = 1 : uint32, container_id = 2 : uint32, length = 3 : uint32",
    "SELinuxOption": "user = 1 : string, role = 2 : string, type = 3 : string, level = 4 : string",
    "SecurityProfile": "profile_type = 1 : ProfileType, localhost_ref = 2 : string",
    "LinuxContainerResources": "cpu_period = 1 : int64, cpu_quota = 2 : int64, cpu_shares = 3 : int64,"
    " memory_limit_in_bytes = 4 : int64, oom_score_adj = 5 : int64, cpuset_cpus = 6 : string, cpuset_mems = 7 : string,"
    " hugepage_limits = 8 : repeated HugepageLimit, unified = 9 : map<string,string>,"
    " memory_swap_limit_in_bytes = 10 : int64",
    "HugepageLimit": "page_size = 1 : string, limit = 2 : uint64",
    "WindowsPodSandboxConfig": "security_context = 1 : WindowsSandboxSecurityContext",
    "WindowsSandboxSecurityContext": "run_as_username = 1 : string, credential_spec = 2 : string,"
    " host_process = 3 : bool, namespace_options = 4 : WindowsNamespaceOption",
    "WindowsNamespaceOption": "network = 1 : NamespaceMode",
    "PullImageResponse": "image_ref = 1 : string",
    "RemoveImageRequest": "image = 1 : ImageSpec",
    "RemoveImageResponse": "",
    "ImageFsInfoRequest": "",
    "ImageFsInfoResponse": "image_filesystems = 1 : repeated FilesystemUsage,"
    " container_filesystems = 2 : repeated FilesystemUsage",
    "FilesystemUsage": "timestamp = 1 : int64, fs_id = 2 : FilesystemIdentifier, used_bytes = 3 : UInt64Value,"
    " inodes_used = 4 : UInt64Value",
    "FilesystemIdentifier": "mountpoint = 1 : string",
    "UInt64Value": "value = 1 : uint64",
    "VersionRequest": "version = 1 : string",
    "VersionResponse": "version = 1 : string, runtime_name = 2 : string, runtime_version = 3 : string,"
    " runtime_api_version = 4 : string",
    "StatusRequest": "verbose = 1 : bool",
    "StatusResponse": "status = 1 : RuntimeStatus, info = 2 : map<string,string>,"
    " runtime_handlers = 3 : repeated RuntimeHandler, features = 4 : RuntimeFeatures",
    "RuntimeStatus": "conditions = 1 : repeated RuntimeCondition",
    "RuntimeCondition": "type = 1 : string, status = 2 : bool, reason = 3 : string, message = 4 : string",
    "RuntimeHandler": "name = 1 : string, features = 2 : RuntimeHandlerFeatures",
    "RuntimeHandlerFeatures": "recursive_read_only_mounts = 1 : bool, user_namespaces = 2 : bool",
    "RuntimeFeatures": "supplemental_groups_policy = 1 : bool, user_namespaces_host_network = 2 : bool",
}
IMAGE_SERVICE = ("ListImages", "StreamImages", "ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo")


def without(rows: Rows, *gone: str) -> Rows:
    """Take fields (`Message.field`) and whole messages (`Message`) away."""
    kept = {name: row for name, row in rows.items() if name not in gone}
    for message, _, name in (one.partition(".") for one in gone if "." in one):
        fields = [field for field in kept[message].split(", ") if field.strip().split(" ")[0] != name]
        assert len(fields) == kept[message].count(", "), f"{message} has no {name}"
        kept[message] = ", ".join(fields)
    return kept


def with_a_field_in_every_message(rows: Rows) -> Rows:
    more = "from_the_future = 9000 : string, more_of_it = 9001 : repeated ImageSpec"
    return {name: f"{row}, {more}" if row else more for name, row in rows.items()}


V1_34 = without(NEWEST, "StreamImagesRequest", "StreamImagesResponse", "ImageSpec.image_ref")
V1_29 = without(V1_34, "StatusResponse.features", "RuntimeFeatures")
V1_28 = without(
    V1_29,
    *("ImageSpec.runtime_handler", "ImageFsInfoResponse.container_filesystems"),
    *("StatusResponse.runtime_handlers", "RuntimeHandler", "RuntimeHandlerFeatures"),
)
VERSIONS: Mapping[str, Rows] = {
    "1.28": V1_28,
    "1.29": V1_29,
    "1.34": V1_34,
    "1.37": NEWEST,
    "future": with_a_field_in_every_message(NEWEST),
}


def _add_field(message: descriptor_pb2.DescriptorProto, found: re.Match[str]) -> None:
    name, number, repeated, kind = found.groups()
    field = message.field.add(name=name, number=int(number), label=3 if repeated else 1)
    if kind.startswith("map<"):
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=1, type=9)
        entry.field.add(name="value", number=2, label=1, type=9)
        field.label, field.type, field.type_name = 3, 11, f".{PACKAGE}.{message.name}.{entry.name}"
    elif kind in SCALARS:
        field.type = SCALARS[kind]
    else:
        field.type, field.type_name = 14 if kind in ENUMS else 11, f".{PACKAGE}.{kind}"


def classes_of(rows: Rows) -> dict[str, type[Message]]:
    """The message classes of one version, in a pool of their own."""
    file = descriptor_pb2.FileDescriptorProto(name="api.proto", package=PACKAGE, syntax="proto3")
    for name, row in rows.items():
        message = file.message_type.add(name=name)
        for found in FIELD.finditer(row):
            _add_field(message, found)
        assert len(message.field) == (row.count(" : "))
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=f"{name}_{value}", number=number)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in rows}


def filled(kind: type[Message], depth: int = 6) -> Message:
    """A message with something in every field, and in the fields of its fields."""
    message = kind()
    for field in message.DESCRIPTOR.fields:
        _fill(message, field, depth)
    return message


def _fill(message: Any, field: FieldDescriptor, depth: int) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(message, field.name).update({"key": "value", "": ""})
    elif field.message_type is not None:
        if depth == 0:
            return
        below = filled(message_factory.GetMessageClass(field.message_type), depth - 1)
        if field.is_repeated:
            getattr(message, field.name).extend([below, below])
        else:
            getattr(message, field.name).CopyFrom(below)
    elif field.is_repeated:
        getattr(message, field.name).extend([_value(field), _value(field)])
    else:
        setattr(message, field.name, _value(field))


def _value(field: FieldDescriptor) -> object:
    if field.type == FieldDescriptor.TYPE_STRING:
        return f"{field.name} ü"
    return True if field.type == FieldDescriptor.TYPE_BOOL else 1


@dataclass(frozen=True)
class Client:
    """A client of one version, on *channel*."""

    classes: Mapping[str, type[Message]]
    channel: grpc.aio.Channel

    def message(self, name: str, **fields: Any) -> Any:
        return self.classes[name](**fields)

    def _method(self, make: Callable[..., Any], service: str, method: str) -> Any:
        return make(
            f"/{PACKAGE}.{service}/{method}",
            request_serializer=self.classes[f"{method}Request"].SerializeToString,
            response_deserializer=self.classes[f"{method}Response"].FromString,
        )

    async def call(self, method: str, request: Message | None = None, **fields: Any) -> Any:
        service = "ImageService" if method in IMAGE_SERVICE else "RuntimeService"
        request = self.message(f"{method}Request", **fields) if request is None else request
        return await self._method(self.channel.unary_unary, service, method)(request)

    async def stream(self, method: str, **fields: Any) -> list[Any]:
        call = self._method(self.channel.unary_stream, "ImageService", method)
        return [part async for part in call(self.message(f"{method}Request", **fields))]
