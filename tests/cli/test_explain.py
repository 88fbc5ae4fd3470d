"""`cri-shim explain`: the page of the admin socket, for people."""

from __future__ import annotations

from cri_shim.cli.explain import render

ANSWER = {
    "reference": "docker.io/library/nginx:latest",
    "here": None,
    "up_to_date": False,
    "credentials": ["/var/lib/kubelet/config.json: key docker.io", "anonymous"],
    "hosts": [
        {"url": "https://m/v2", "source": "/c/hosts.toml", "proxy": "p:1", "left_out_seconds": 3.2,
         "refused": ["m answered 401"], "answer": "every credential is refused"},
        {"url": "https://registry-1.docker.io/v2", "source": "default", "proxy": "", "left_out_seconds": 0,
         "refused": [], "answer": "has it, sha256:abc"},
    ],
    "layers": [{"blob": "sha256:1", "size_bytes": 10, "state": "download", "download_bytes": 10}],
    "download_bytes": 10,
    "error": "",
}  # fmt: skip


HOST_LINE = (
    "hosts          1. https://m/v2 (/c/hosts.toml) through the proxy p:1, left out for 3 s more: m answered 401; "
    "every credential is refused"
)


def test_for_people():
    assert render(ANSWER).splitlines() == [
        "image          docker.io/library/nginx:latest",
        "up to date     False",
        "credentials    1. /var/lib/kubelet/config.json: key docker.io",
        "               2. anonymous",
        HOST_LINE,
        "               2. https://registry-1.docker.io/v2 (default): has it, sha256:abc",
        "layers         1. sha256:1  10 bytes  download",
        "to download    10 bytes",
    ]


def test_a_failure_stands_last():
    assert render({**ANSWER, "error": "no such image"}).splitlines()[-1] == "fails          no such image"
