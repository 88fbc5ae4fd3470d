"""The CRI messages: equal on the wire to runtime.v1, and the checked-in code equal to what the generator writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor

from cri_shim.pb import api_pb2, health_pb2
from cri_shim.pb.containerd import content_pb2, images_pb2, leases_pb2, snapshots_pb2, types_pb2, version_pb2

ROOT = Path(__file__).parent.parent

# The wire facts of CRI v1 (cri-api 0.36), message by message: name = number : type.
WHOLE = {
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
    "PodSandboxMetadata": "name = 1 : string, uid = 2 : string, namespace = 3 : string, attempt = 4 : uint32",
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
# Of these only a part is declared; the rest stays unknown, and is kept.
PART = {
    "PodSandboxConfig": "metadata = 1 : PodSandboxMetadata, hostname = 2 : string, log_directory = 3 : string,"
    " dns_config = 4 : DNSConfig, port_mappings = 5 : repeated PortMapping, labels = 6 : map<string,string>,"
    " annotations = 7 : map<string,string>, linux = 8 : LinuxPodSandboxConfig, windows = 9 : WindowsPodSandboxConfig",
}
METHODS = {
    "ImageService": {
        "ListImages": ("ListImagesRequest", "ListImagesResponse", False),
        "StreamImages": ("StreamImagesRequest", "StreamImagesResponse", True),
        "ImageStatus": ("ImageStatusRequest", "ImageStatusResponse", False),
        "PullImage": ("PullImageRequest", "PullImageResponse", False),
        "RemoveImage": ("RemoveImageRequest", "RemoveImageResponse", False),
        "ImageFsInfo": ("ImageFsInfoRequest", "ImageFsInfoResponse", False),
    },
    "RuntimeService": {
        "Version": ("VersionRequest", "VersionResponse", False),
        "Status": ("StatusRequest", "StatusResponse", False),
    },
}
SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}
MESSAGES = api_pb2.DESCRIPTOR.message_types_by_name


def fields(row: str) -> set[str]:
    return {field.strip() for field in row.replace("map<string,string>", "map").split(",") if field.strip()}


def declared(message: str) -> set[str]:
    return {f"{field.name} = {field.number} : {type_of(field)}" for field in MESSAGES[message].fields}


def type_of(field: FieldDescriptor) -> str:
    if field.message_type is None:
        name = SCALARS[field.type]
    elif field.message_type.GetOptions().map_entry:
        return "map"
    else:
        name = field.message_type.name
    return f"repeated {name}" if field.is_repeated else name


def test_the_package_is_the_one_that_clients_ask_for():
    assert api_pb2.DESCRIPTOR.package == "runtime.v1"


@pytest.mark.parametrize("message", WHOLE)
def test_a_whole_message_has_every_field(message):
    assert declared(message) == fields(WHOLE[message])


@pytest.mark.parametrize("message", PART)
def test_a_message_in_part_has_no_other_field(message):
    assert declared(message) < fields(PART[message])


def test_every_message_is_compared():
    assert set(MESSAGES) == set(WHOLE) | set(PART)


def test_the_services_have_these_methods():
    services = api_pb2.DESCRIPTOR.services_by_name
    found = {
        name: {m.name: (m.input_type.name, m.output_type.name, m.server_streaming) for m in service.methods}
        for name, service in services.items()
    }
    assert found == METHODS
    assert not any(m.client_streaming for service in services.values() for m in service.methods)


def test_the_secret_fields_say_so():
    marked = {field.name for field in MESSAGES["AuthConfig"].fields if field.GetOptions().debug_redact}
    assert marked == {"password", "auth", "identity_token", "registry_token"}


def test_fields_of_a_newer_client_are_kept():
    pod = b"\x0a\x05\x0a\x03web" + b"\x42\x04\x0a\x02/x"  # metadata.name; linux.cgroup_parent is not declared
    request = api_pb2.PullImageRequest.FromString(b"\x1a" + bytes([len(pod)]) + pod + b"\xfa\x3e\x01z")
    assert request.sandbox_config.metadata.name == "web"
    assert request.SerializeToString().endswith(b"\xfa\x3e\x01z")
    assert b"/x" in request.SerializeToString()


def test_the_generated_code_is_what_the_generator_writes(tmp_path):
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    sources = [path.relative_to(ROOT / "protos") for path in (ROOT / "protos").rglob("*.proto")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "protos", *outputs, *map(str, sources)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}(make test installs the generator)"
    for source in sources:
        for end in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py"):
            name = source.with_name(source.stem + end)
            assert (tmp_path / name).read_text() == (ROOT / name).read_text(), "make proto"


def test_nothing_else_was_generated():
    sources = {path.relative_to(ROOT / "protos").with_suffix("") for path in (ROOT / "protos").rglob("*.proto")}
    made = {path.relative_to(ROOT) for path in (ROOT / "cri_shim/pb").rglob("*_pb2*")} - {
        path.relative_to(ROOT) for path in (ROOT / "cri_shim/pb").rglob("*.pyc")
    }
    ends = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
    assert made == {source.with_name(source.name + end) for source in sources for end in ends}


def test_the_generated_code_imports_itself_by_its_package():
    assert "from cri_shim.pb import api_pb2" in (ROOT / "cri_shim/pb/api_pb2_grpc.py").read_text()
    images = (ROOT / "cri_shim/pb/containerd/images_pb2.py").read_text()
    assert "from cri_shim.pb.containerd import types_pb2" in images


# What containerd's services say (1.6 to 2.x), in the part that is used here; Python's own module `types` stays itself.
CONTAINERD = {
    types_pb2: {
        "Mount": "type = 1 : string, source = 2 : string, target = 3 : string, options = 4 : repeated string",
        "Descriptor": "media_type = 1 : string, digest = 2 : string, size = 3 : int64",
    },
    leases_pb2: {
        "Lease": "id = 1 : string, labels = 3 : map",
        "CreateRequest": "id = 1 : string, labels = 3 : map",
        "CreateResponse": "lease = 1 : Lease",
        "DeleteRequest": "id = 1 : string, sync = 2 : bool",
        "ListRequest": "filters = 1 : repeated string",
        "ListResponse": "leases = 1 : repeated Lease",
        "Resource": "id = 1 : string, type = 2 : string",
        "AddResourceRequest": "id = 1 : string, resource = 2 : Resource",
    },
    content_pb2: {
        "Info": "digest = 1 : string, size = 2 : int64, labels = 5 : map",
        "InfoRequest": "digest = 1 : string",
        "InfoResponse": "info = 1 : Info",
        "UpdateRequest": "info = 1 : Info, update_mask = 2 : FieldMask",
        "UpdateResponse": "info = 1 : Info",
        "WriteContentRequest": "action = 1 : enum, ref = 2 : string, total = 3 : int64, expected = 4 : string,"
        " offset = 5 : int64, data = 6 : bytes, labels = 7 : map",
        "WriteContentResponse": "action = 1 : enum, offset = 4 : int64, total = 5 : int64, digest = 6 : string",
    },
    images_pb2: {
        "Image": "name = 1 : string, labels = 2 : map, target = 3 : Descriptor",
        "GetImageRequest": "name = 1 : string",
        "GetImageResponse": "image = 1 : Image",
        "ListImagesRequest": "filters = 1 : repeated string",
        "ListImagesResponse": "images = 1 : repeated Image",
        "CreateImageRequest": "image = 1 : Image",
        "CreateImageResponse": "image = 1 : Image",
        "UpdateImageRequest": "image = 1 : Image, update_mask = 2 : FieldMask",
        "UpdateImageResponse": "image = 1 : Image",
        "DeleteImageRequest": "name = 1 : string, sync = 2 : bool",
    },
    snapshots_pb2: {
        "PrepareSnapshotRequest": "snapshotter = 1 : string, key = 2 : string, parent = 3 : string, labels = 4 : map",
        "PrepareSnapshotResponse": "mounts = 1 : repeated Mount",
        "ViewSnapshotRequest": "snapshotter = 1 : string, key = 2 : string, parent = 3 : string, labels = 4 : map",
        "ViewSnapshotResponse": "mounts = 1 : repeated Mount",
        "MountsRequest": "snapshotter = 1 : string, key = 2 : string",
        "MountsResponse": "mounts = 1 : repeated Mount",
        "CommitSnapshotRequest": "snapshotter = 1 : string, name = 2 : string, key = 3 : string, labels = 4 : map",
        "RemoveSnapshotRequest": "snapshotter = 1 : string, key = 2 : string",
        "StatSnapshotRequest": "snapshotter = 1 : string, key = 2 : string",
        "StatSnapshotResponse": "info = 1 : Info",
        "Info": "name = 1 : string, parent = 2 : string, kind = 3 : enum, labels = 6 : map",
    },
    version_pb2: {"VersionResponse": "version = 1 : string, revision = 2 : string"},
}
FULL_NAMES = {
    leases_pb2: "containerd.services.leases.v1.Leases: Create Delete List AddResource",
    content_pb2: "containerd.services.content.v1.Content: Info Update Write",
    images_pb2: "containerd.services.images.v1.Images: Get List Create Update Delete",
    snapshots_pb2: "containerd.services.snapshots.v1.Snapshots: Prepare Commit Remove Stat Mounts View",
    version_pb2: "containerd.services.version.v1.Version: Version",
}


@pytest.mark.parametrize("module", CONTAINERD, ids=lambda module: module.DESCRIPTOR.package)
def test_containerds_messages(module):
    found = {
        name: {f"{field.name} = {field.number} : {type_of(field)}" for field in message.fields}
        for name, message in module.DESCRIPTOR.message_types_by_name.items()
    }
    assert found == {name: fields(row) for name, row in CONTAINERD[module].items()}


@pytest.mark.parametrize("module", FULL_NAMES, ids=lambda module: module.DESCRIPTOR.package)
def test_containerds_services(module):
    service = next(iter(module.DESCRIPTOR.services_by_name.values()))
    methods = " ".join(method.name for method in service.methods)
    assert f"{service.full_name}: {methods}" == FULL_NAMES[module]


def test_containerds_enumerations():
    assert dict(content_pb2.WriteAction.items()) == {"STAT": 0, "WRITE": 1, "COMMIT": 2}
    assert dict(snapshots_pb2.Kind.items()) == {"UNKNOWN": 0, "VIEW": 1, "ACTIVE": 2, "COMMITTED": 3}
    write = content_pb2.DESCRIPTOR.services_by_name["Content"].methods_by_name["Write"]
    assert write.client_streaming
    assert write.server_streaming


def test_fields_of_a_newer_containerd_are_passed_over():
    record = images_pb2.Image.FromString(b"\x0a\x01a" + b"\x3a\x02\x08\x01" + b"\xfa\x3e\x01z")  # 7: created_at
    assert record.name == "a"


def test_the_health_service_is_the_one_that_grpc_has():
    """In names, numbers and types of grpc/health/v1/health.proto; a client of others asks it in tests/server."""
    messages = health_pb2.DESCRIPTOR.message_types_by_name
    found = {
        name: {f"{one.name} = {one.number} : {type_of(one)}" for one in messages[name].fields} for name in messages
    }
    assert found == {
        "HealthCheckRequest": {"service = 1 : string"},
        "HealthCheckResponse": {"status = 1 : enum"},
        "HealthListRequest": set(),
        "HealthListResponse": {"statuses = 1 : map"},
    }
    statuses = {"UNKNOWN": 0, "SERVING": 1, "NOT_SERVING": 2, "SERVICE_UNKNOWN": 3}
    assert dict(health_pb2.HealthCheckResponse.ServingStatus.items()) == statuses
    service = health_pb2.DESCRIPTOR.services_by_name["Health"]
    assert service.full_name == "grpc.health.v1.Health"
    assert {one.name: one.server_streaming for one in service.methods} == {"Check": False, "List": False, "Watch": True}
