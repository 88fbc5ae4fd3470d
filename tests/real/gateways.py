"""What stands before registries in the real world: nginx, squid, a registry over TLS, a pull-through mirror."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

from tests.real.networks import HERE, Here
from tests.real.programs import LOOPBACK, free_port, run, stop
from tests.real.registry import DockerRegistry


class TlsRegistry(DockerRegistry):
    """A registry over TLS that wants a client certificate of *authority*."""

    def __init__(self, base: Path, pair, authority, **options) -> None:
        self._pair, self._authority = pair, authority
        super().__init__(base, **options)

    def _config(self, base: Path, **options) -> dict:
        config = super()._config(base, **options)
        config["http"]["tls"] = {
            "certificate": str(self._pair.cert),
            "key": str(self._pair.key),
            "clientcas": [str(self._authority.cert)],
        }
        return config


class PullThrough(DockerRegistry):
    """A mirror that fetches what it lacks from another registry."""

    def __init__(self, base: Path, upstream: str) -> None:
        self._upstream = upstream
        super().__init__(base)

    def _config(self, base: Path, **options) -> dict:
        return super()._config(base, **options) | {"proxy": {"remoteurl": f"http://{self._upstream}"}}


class Nginx:
    """nginx with one server, whose body is *server*; `lines` is its log: method, path, status, Authorization."""

    def __init__(self, base: Path, server: str, outside: str = "", *, address: str = LOOPBACK) -> None:
        base.mkdir(parents=True)
        self.host = f"{address}:{free_port()}"
        self.log = base / "access.log"
        temporary = "".join(
            f"{kind}_temp_path {base}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (base / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {base}/pid; error_log {base}/error.log;\n"
            "events { worker_connections 256; }\n"
            f"http {{\n{temporary}"
            "log_format plain '$request_method $uri $status $http_authorization';\n"
            f"access_log {self.log} plain;\n{outside}\n"
            f"server {{ listen {self.host}; client_max_body_size 0;\n{server}\n}}\n}}\n"
        )
        self.process = subprocess.Popen(
            ["nginx", "-e", str(base / "error.log"), "-c", str(base / "nginx.conf")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        HERE.wait_for(self.process, self.host)

    def close(self) -> None:
        stop(self.process)

    def lines(self) -> list[list[str]]:
        return [line.split(" ", 3) for line in self.log.read_text().splitlines()]


def before(registry: DockerRegistry, more: str = "") -> str:
    """The nginx location that hands everything to *registry*, without a buffer in between."""
    return (
        f"location / {{ {more} proxy_pass http://{registry.host}; proxy_set_header Host {registry.host};"
        " proxy_buffering off; proxy_http_version 1.1; }"
    )


class Squid:
    """A squid that wants a user, and alone knows where *names* are (all on loopback); over TLS with a *pair*."""

    def __init__(
        self,
        *names: str,
        user: str = "puller",
        password: str = "sword-fish",
        network: Here = HERE,
        address: str = LOOPBACK,
        pair=None,
    ) -> None:
        # It gives up root, and then must write its log: not below a private directory.
        self.base = Path(tempfile.mkdtemp(prefix="cs-squid-"))
        self.host = f"{address}:{free_port()}"
        self.log = self.base / "access.log"
        (self.base / "hosts").write_text("".join(f"{LOOPBACK} {name}\n" for name in names))
        (self.base / "users").write_text(f"{user}:{run('openssl', 'passwd', '-apr1', password).stdout.strip()}\n")
        config = self.base / "squid.conf"
        config.write_text(
            f"{self._port(pair)}\nhosts_file {self.base}/hosts\n"
            f"auth_param basic program /usr/lib/squid/basic_ncsa_auth {self.base}/users\n"
            "auth_param basic children 2 startup=1\nacl known proxy_auth REQUIRED\n"
            "http_access allow known\nhttp_access deny all\ncache deny all\nshutdown_lifetime 1 second\n"
            f"access_log stdio:{self.log}\ncache_log {self.base}/cache.log\npid_filename none\n"
            f"coredump_dir {self.base}\nvisible_hostname squid.test\n"
        )
        owner = pwd.getpwnam("proxy")
        for path in (self.base, *self.base.iterdir()):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        self.process = subprocess.Popen(
            [*network.enter, "squid", "-N", "-f", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        network.wait_for(self.process, self.host)

    def _port(self, pair) -> str:
        if pair is None:
            return f"http_port {self.host}"
        for name, path in {"cert": pair.cert, "key": pair.key}.items():
            shutil.copy(path, self.base / name)
        return f"https_port {self.host} tls-cert={self.base}/cert tls-key={self.base}/key"

    def close(self) -> None:
        stop(self.process)
        shutil.rmtree(self.base)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


class Socks:
    """A microsocks that wants a user; `lines` has one for each connection that it made."""

    def __init__(self, log: Path, network: Here, address: str) -> None:
        self.log, self.host = log, f"{address}:{free_port()}"
        command = ["microsocks", "-i", address, "-p", self.host.rpartition(":")[2], "-u", "puller", "-P", "sword-fish"]
        with log.open("wb") as said:
            self.process = subprocess.Popen(
                [*network.enter, *command], stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        network.wait_for(self.process, self.host)

    def close(self) -> None:
        stop(self.process)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()


class Silent:
    """A listener that takes connections, keeps them in `taken`, and never says a word."""

    def __init__(self) -> None:
        self._listening = socket.create_server((LOOPBACK, 0), backlog=64)
        self.host = f"{LOOPBACK}:{self._listening.getsockname()[1]}"
        self.taken: list[socket.socket] = []
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.taken.append(self._listening.accept()[0])

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for one in (self._listening, *self.taken):
            one.close()
