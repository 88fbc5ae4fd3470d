"""config.json of a bundle, from the config of an image."""

from __future__ import annotations

import json

import pytest

from cri_shim.errors import ContentRejected
from cri_shim.handoff.bundle import PATH, Wanted, runtime_spec, wanted_of
from cri_shim.handoff.passwd import Identity


def config(**process: object) -> bytes:
    return json.dumps({"config": process, "rootfs": {}}).encode()


def test_what_an_image_asks_for() -> None:
    wanted = wanted_of(
        config(Entrypoint=["/e", "x"], Cmd=["c"], Env=["A=1", "PATH=/p"], WorkingDir="srv", User="5:6", StopSignal="9")
    )
    assert wanted == Wanted(("/e", "x", "c"), ("A=1", "PATH=/p"), "/srv", "5:6", (), "9")
    spec = runtime_spec(wanted, Identity(5, 6, (7,), "/h"), "host")
    process = spec["process"]
    assert isinstance(process, dict)
    assert (process["args"], process["cwd"]) == (["/e", "x", "c"], "/srv")
    assert process["env"] == ["A=1", "PATH=/p", "HOME=/h"]
    assert process["user"] == {"uid": 5, "gid": 6, "additionalGids": [7]}
    assert set(process["capabilities"]) == {"bounding"}
    assert spec["annotations"] == {"org.opencontainers.image.stopSignal": "9"}
    assert json.loads(json.dumps(spec)) == spec


def test_labels_that_runtimes_obey_stay_out() -> None:
    orders = {
        "run.oci.seccomp.plugins": "/evil.so",
        "run.oci.seccomp_bpf_data": "AAAA",
        "run.oci.hooks.stdout": "/etc/passwd",
        "org.systemd.property.ExecStart": "'/evil'",
        "org.opencontainers.imagex": "near",
        "Org.opencontainers.image.title": "near",
        "": "nothing",
    }
    about = {"org.opencontainers.image.title": "t", "org.opencontainers.image.": "bare"}
    spec = runtime_spec(wanted_of(config(Labels={**orders, **about}, StopSignal="9")), Identity(0, 0), "host")
    assert spec["annotations"] == {**about, "org.opencontainers.image.stopSignal": "9"}
    assert not any(key in json.dumps(spec) for key in orders if key)


def test_an_image_that_asks_for_nothing() -> None:
    for data in (b"{}", b'{"config": null}', config()):
        assert wanted_of(data) == Wanted((), (), "/", "")
    process = runtime_spec(wanted_of(b"{}"), Identity(0, 0), "host")["process"]
    assert isinstance(process, dict)
    assert (process["args"], process["env"], process["cwd"]) == (["sh"], [PATH, "HOME=/"], "/")
    assert set(process["capabilities"]) == {"bounding", "effective", "permitted"}


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"config": []}', config(Cmd="x"), config(Env=[1]), config(entrypoint=["x"]), config(User=5)]
)
def test_what_is_no_config_is_refused(data: bytes) -> None:
    with pytest.raises(ContentRejected):
        wanted_of(data)
