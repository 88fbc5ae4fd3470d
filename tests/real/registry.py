"""Debian's docker-registry (the distribution project's) on loopback, its storage and its access log."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.real.networks import HERE, Here
from tests.real.programs import LOOPBACK, free_port, run, stop

# The password of "puller" is "swordfish"; bcrypt, as the registry wants it.
HTPASSWD = "puller:$2y$05$abcdefghijklmnopqrstuupWDwJQeCHYIBQy8WvkVB6ImhZ476YYy\n"
LINE = re.compile(r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[0-9.]+" (?P<status>\d{3}) (?P<sent>\d+)')


@dataclass(frozen=True)
class Line:
    """A line of the access log."""

    method: str
    path: str
    status: int


class DockerRegistry:
    """A running registry; *password* turns basic authentication on, *auth* is that section of its configuration."""

    def __init__(
        self,
        base: Path,
        *,
        password: bool = False,
        auth: dict | None = None,
        network: Here = HERE,
        address: str = LOOPBACK,
    ) -> None:
        self.storage, self.log = base / "storage", base / "registry.log"
        self.network, self.host = network, f"{address}:{free_port()}"
        self.storage.mkdir(parents=True)
        self.config = base / "registry.yml"
        self.config.write_text(json.dumps(self._config(base, password=password, auth=auth)))
        self.start()

    def start(self) -> None:
        """Start, and return when it takes connections; once more after `close`."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.network.enter, "docker-registry", "serve", self.config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.network.wait_for(self.process, self.host)

    def close(self) -> None:
        stop(self.process)

    def push(self, layout: Path, tag: str, name: str, *options: str) -> str:
        """Copy *tag* of an OCI layout to *name* with skopeo and return the digest it got."""
        digest = self.storage.parent / "digest"
        run(
            *self.network.enter, "skopeo", "copy", "--quiet", "--all", "--dest-tls-verify=false", "--digestfile", digest, *options,
            f"oci:{layout}:{tag}", f"docker://{self.host}/{name}",
        )  # fmt: skip
        return digest.read_text().strip()

    def manifest(self, name: str) -> dict:
        """The manifest that *name* stands for, as skopeo sees it."""
        return json.loads(
            run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{self.host}/{name}").stdout
        )

    def manifest_as(self, name: str, creds: str) -> dict:
        """The manifest that *name* stands for, for somebody with a password."""
        return json.loads(
            run(
                "skopeo", "inspect", "--raw", "--tls-verify=false", "--creds", creds, f"docker://{self.host}/{name}"
            ).stdout
        )  # fmt: skip

    def lines(self) -> list[Line]:
        found = LINE.finditer(self.log.read_text(errors="replace"))
        return [Line(line["method"], line["path"], int(line["status"])) for line in found]

    def blob_gets(self) -> Counter[str]:
        """How often each blob was sent."""
        return Counter(
            line.path.rpartition("/")[2]
            for line in self.lines()
            if line.method == "GET" and line.status in {200, 206} and "/blobs/sha256:" in line.path
        )

    def blob_file(self, digest: str) -> Path:
        """Where the registry keeps the bytes of a blob."""
        hex_ = digest.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/blobs/sha256" / hex_[:2] / hex_ / "data"

    def _config(self, base: Path, *, password: bool, auth: dict | None) -> dict:
        config = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": False}},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}, "delete": {"enabled": True}},
            "http": {"addr": self.host},
        }
        if password:
            passwords = base / "htpasswd"
            passwords.write_text(HTPASSWD)
            config["auth"] = {"htpasswd": {"realm": "real tests", "path": str(passwords)}}
        if auth is not None:
            config["auth"] = auth
        return config
