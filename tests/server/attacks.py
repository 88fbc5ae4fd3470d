"""Groups H and T of the attack corpus as values: what a registry does, and what a client of the daemon must see.

A case arranges a `Scene`, then the image is pulled through the daemon's socket. `requests` counts what came to the
registry's `path` until the answer; None is not counted. The cases that need names, TLS or a clock of their own are
tests of the rooms below: the table in docs/attacks.md names the test of every case.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from grpc import StatusCode

from cri_shim.registry.client import Terms
from cri_shim.registry.wire import Limits
from tests.fakes.images import FakeImage
from tests.fakes.misbehaviour import (
    Behaviour,
    Exchange,
    chunked,
    cut,
    drop,
    errors,
    lie,
    partly,
    raw,
    redirect,
    status,
    swap,
    until_close,
    whole,
)
from tests.fakes.registry import Basic, Bearer, FakeRegistry

USER, PASSWORD = "her-name", "s3cret-pass"
USERS = {USER: PASSWORD}
CODE = StatusCode
DONE = StatusCode.OK


@dataclass
class Scene:
    """What a case may arrange: a registry with the image, another one, and how the daemon looks at them."""

    registry: FakeRegistry
    other: FakeRegistry
    image: FakeImage
    mirrors: Callable[..., None]
    limits: Callable[[Limits], None]
    terms: Callable[[Terms], None]
    server_address: str = ""
    credential: bool = False
    twice: bool = False  # the image is here already when it is asked for
    after: list[Callable[[], None]] = field(default_factory=list)

    def blob(self, behaviour: Behaviour, *more: Behaviour) -> None:
        """Answer for the largest layer so, each time, or one after another and then well."""
        if more:
            self.registry.then("GET", self.blob_path, *(one for one in (behaviour, *more) if one is not WELL))
        else:
            self.registry.on("GET", self.blob_path, behaviour)

    @property
    def blob_path(self) -> str:
        largest = max(self.image.layers, key=lambda one: len(one.blob))
        return f"/blobs/{largest.digest}$"

    @property
    def size(self) -> int:
        return max(len(one.blob) for one in self.image.layers)

    def bearer(self, **more: object) -> None:
        """Have the registry want tokens, and the caller have a credential."""
        self.credential, self.registry.auth = True, Bearer(users=USERS, **more)


def WELL(exchange: Exchange) -> None:  # noqa: N802 - a mark
    exchange.answer(exchange.default())


@dataclass(frozen=True)
class Case:
    """*name* begins with the case's id in the corpus."""

    name: str
    arrange: Callable[[Scene], object]
    code: StatusCode
    requests: int | None = None
    path: str = "blob"  # or a regex; "" is everything that came
    says: str = ""


def blob(name: str, behaviour: Behaviour, code: StatusCode, requests: int, *more: Behaviour, says: str = "") -> Case:
    return Case(name, lambda scene: scene.blob(behaviour, *more), code, requests, says=says)


def manifest(name: str, behaviour: Behaviour, code: StatusCode, requests: int, says: str = "") -> Case:
    return Case(
        name,
        lambda scene: scene.registry.on("GET", "/manifests/", behaviour),
        code,
        requests,
        "/manifests/",
        says,
    )


def large(code: int, headers: tuple[tuple[str, str], ...] = ()) -> Behaviour:
    """A status with a body of a gigabyte, of which somebody reads little."""

    def behave(exchange: Exchange) -> None:
        exchange.head(code, (*headers, ("Content-Length", str(1 << 30))))
        for _ in range(1 << 10):
            exchange.send(bytes(1 << 20))

    return behave


def busy(after: str | None) -> Behaviour:
    return status(429, headers=[("Retry-After", after)] if after else [])


HEAD = b"HTTP/1.1 200 OK\r\n"
UNAVAILABLE, CONTENT = CODE.UNKNOWN, CODE.FAILED_PRECONDITION
ANSI = "\x1b[31mred\r\nnext\u202e" + "x" * 10_000


def _loop(scene: Scene) -> None:
    scene.registry.on("GET", "/blobs/|/round", redirect("/round", 302))


def _chain(scene: Scene, hops: int) -> None:
    for hop in range(1, hops):
        scene.registry.on("GET", f"/hop{hop}$", redirect(f"/hop{hop + 1}", 302))
    data = next(one.blob for one in scene.image.layers if len(one.blob) == scene.size)
    scene.registry.on("GET", f"/hop{hops}$", status(200, data))
    scene.blob(redirect("/hop1", 302))


def _hop_home(scene: Scene) -> None:
    """The registry sends us to another host, which sends us back: what was dropped is not picked up."""
    scene.registry.auth, scene.credential = Basic(USERS), True
    data = next(one.blob for one in scene.image.layers if len(one.blob) == scene.size)
    scene.blob(redirect(f"{scene.other.url}/away"))
    scene.other.on("GET", "/away", redirect(f"{scene.registry.url}/home"))
    scene.registry.on("GET", "/home", status(200, data))

    def bare() -> None:
        seen = [*scene.other.log, *scene.registry.requests("GET", "/home")]
        assert len(seen) == 2
        assert not any("authorization" in one.headers for one in seen)

    scene.after.append(bare)


def _ranges(answer: str | None) -> Callable[[Scene], None]:
    """After 1000 bytes the connection ends; the rest comes under a Content-Range that is *answer*."""

    def arrange(scene: Scene) -> None:
        text = None if answer is None else answer.format(last=scene.size - 1, size=scene.size)
        scene.blob(cut(1000, reset=False), lie(content_range=text))

    return arrange


def _slow(behaviour: Callable[[Scene], Behaviour]) -> Callable[[Scene], None]:
    def arrange(scene: Scene) -> None:
        scene.limits(Limits(idle_seconds=0.3))
        scene.blob(behaviour(scene))

    return arrange


def _mirror(behaviour: Behaviour) -> Callable[[Scene], None]:
    def arrange(scene: Scene) -> None:
        scene.other.add("team/app", scene.image, tag="v1")
        scene.mirrors(scene.other)
        scene.other.on("*", "/blobs/", behaviour)
        scene.registry.auth, scene.credential = Basic(USERS), True
        scene.after.append(lambda: _nothing_shown(scene.other))

    return arrange


def _nothing_shown(registry: FakeRegistry) -> None:
    assert registry.log
    assert not any({"authorization", "cookie"} & set(one.headers) for one in registry.log)


def _present(behaviour: Behaviour) -> Callable[[Scene], None]:
    def arrange(scene: Scene) -> None:
        scene.twice = True
        scene.registry.on("HEAD", "/manifests/", behaviour)

    return arrange


def _not_asked(scene: Scene) -> None:
    def silent() -> None:
        assert scene.other.log == []

    scene.after.append(silent)


H = (
    Case("H01 a chain of ten", lambda scene: _chain(scene, 10), DONE, 1),
    Case("H01 a chain of eleven", lambda scene: _chain(scene, 11), UNAVAILABLE, 1, says="more than 10 times"),
    Case("H01 a loop", _loop, UNAVAILABLE, 10, "/round"),
    *(
        blob(f"H02 {to[:24]!r}", redirect(to), UNAVAILABLE, 1)
        for to in ("file:///etc/passwd", "ftp://127.0.0.1/x", "unix:///run/x.sock", "javascript:x", "", "//evil/x")
    ),
    Case("H03 three hops", _hop_home, DONE, 1),
    *(
        blob(f"H04 {to}", redirect(f"http://{to}/x"), UNAVAILABLE, 1, says="address, which is not asked")
        for to in ("169.254.169.254", "0.0.0.0", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "224.0.0.1")
    ),
    *(
        blob(f"H06 429 twice, Retry-After {after}", busy(after), DONE, 3, busy(after))
        for after in ("2", "0", None, "abc", "Tue, 14 Nov 2000 22:13:25 GMT", "Fri, 31 Dec 9999 23:59:59 GMT")
    ),
    *(
        blob(f"H07 429 for ever, Retry-After {after}", busy(after), UNAVAILABLE, 5, says="answered 429")
        for after in ("999999999", "-1", "1e9")
    ),
    *(
        blob(f"H09 {code} for ever", status(code, b"x" * 10_000), UNAVAILABLE, 5, says=f"answered {code}")
        for code in (500, 502, 503, 504)
    ),
    *(blob(f"H10 a reset after {after}", cut(after), DONE, 2, WELL) for after in (0, 1, 30_000)),
    blob("H11 an end, then all again", cut(30_000, reset=False), DONE, 2, whole()),
    *(
        Case(f"H12 {text}", _ranges(text), DONE, 3)
        for text in (
            "bytes 0-{last}/{size}",
            "bytes 1000-{last}/99",
            "bytes */{size}",
            "items 1000-{last}/{size}",
            None,
        )
    ),
    Case(
        "H12 two wrong ones",
        lambda scene: scene.blob(
            *(cut(1000, reset=False), lie(content_range="bytes 0-1/2"), cut(1000, reset=False)),
            lie(content_range="bytes 0-1/2"),
        ),
        CONTENT,
        4,
    ),
    blob("H14 chunked", chunked(1000), DONE, 1),
    blob("H14 trailers", chunked(1000, trailer=b"A: b\r\n"), DONE, 1),
    *(
        blob(f"H14 {what}", behaviour, UNAVAILABLE, requests)
        for what, behaviour, requests in (
            ("a chunk of 2^64", chunked(1000, last=b"FFFFFFFFFFFFFFFF\r\n"), 1),
            ("extensions of 100 kB", chunked(1000, last=b"0;" + b"e" * 100_000 + b"\r\n"), 1),
            ("a bare LF", chunked(1000, last=b"0\n"), 1),
            ("no last chunk", raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc"), 5),
            ("a length and chunks", raw(HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"), 1),
            ("two lengths", raw(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"), 1),
        )
    ),
    blob("H15 until it closes", until_close(), DONE, 1),
    blob("H16 smaller", lie(content_length="5"), CONTENT, 1, says="announced 5 bytes"),
    blob("H16 larger", lie(content_length="99999999"), CONTENT, 1, says="announced 99999999 bytes"),
    Case(
        "H17 silence in the middle",
        _slow(lambda s: partly(1000, s.registry.gate())),
        UNAVAILABLE,
        5,
        says="no progress",
    ),
    Case(
        "H17 silence after the head", _slow(lambda s: partly(0, s.registry.gate())), UNAVAILABLE, 5, says="no progress"
    ),
    blob("H19 a page for a blob", swap(b"<html>\x1b[31m", content_type="text/html"), CONTENT, 1, says="web page"),
    manifest("H19 a page for a manifest", swap(b"<html>", content_type="text/html"), CONTENT, 1, says='"<html>"'),
    manifest("H20 a digest that lies", lie(docker_content_digest="sha256:" + "0" * 64), CONTENT, 1),
    manifest("H20 a digest that is none", lie(docker_content_digest="garbage"), CONTENT, 1),
    manifest("H20 no digest", lie(docker_content_digest=None), DONE, 1),
    Case("H21 HEAD 405", _present(status(405)), DONE, 1, "/manifests/"),
    Case("H21 HEAD with a huge length", _present(lie(content_length="999999999")), DONE, 1, "/manifests/"),
    Case("H21 HEAD with no digest at all", _present(lie(docker_content_digest=None)), DONE, 1, "/manifests/"),
    Case("H21 HEAD with garbage", _present(lie(docker_content_digest="sha256:no")), CONTENT, 0, "/blobs/"),
    *(
        blob(f"H22 {what}", raw(HEAD + head), UNAVAILABLE, 1)
        for what, head in (
            ("3 MB of headers", b"A: " + b"b" * 3_000_000 + b"\r\n\r\n"),
            ("10 000 headers", b"A: b\r\n" * 10_000 + b"\r\n"),
            ("NUL", b"A: a\0b\r\n\r\n"),
            ("CR", b"A: a\rb\r\n\r\n"),
        )
    ),
    *(
        blob(f"H24 {what}", raw(data), UNAVAILABLE, 1)
        for what, data in (
            ("100 times 100", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
            ("100 times 103", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100),
            ("HTTP/0.9", b"just text"),
            ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            ("TLS", b"\x15\x03\x01\x00\x02\x02\x46"),
        )
    ),
    Case("H25 another blob of that length", lambda scene: scene.blob(swap(bytes(scene.size))), CONTENT, 1),
    *(
        Case(f"H26 a mirror with {what}", _mirror(behaviour), DONE, None)
        for what, behaviour in (
            ("404", status(404)),
            ("503", status(503)),
            ("a page", swap(b"<html>")),
            ("RST", drop()),
        )
    ),
    Case("H26 a mirror with wrong bytes", _mirror(lambda exchange: exchange.answer(_wrong(exchange))), DONE, None),
    *(
        manifest(f"{name} in a manifest", behaviour, UNAVAILABLE, requests)
        for name, behaviour, requests in (
            ("H01 a loop", redirect("/v2/team/app/manifests/v1"), 11),
            ("H02 another scheme", redirect("ftp://x/y"), 1),
            ("H04 metadata", redirect("http://169.254.169.254/latest"), 1),
            ("H09 418", status(418), 1),
            ("H10 a reset", cut(20), 5),
            ("H10 nothing but a reset", drop(), 5),
            ("H11 an end", cut(20, reset=False), 5),
            ("H14 a chunk of 2^64", raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n"), 1),
            ("H14 two lengths", raw(HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"), 1),
            ("H22 a header of 100 kB", raw(HEAD + b"X: " + b"x" * 100_000 + b"\r\n\r\n"), 1),
            ("H24 HTTP/0.9", raw(b"hello\r\n\r\n"), 1),
        )
    ),
    manifest("H15 a manifest until it closes", until_close(), DONE, 1),
    blob("H29 404 for a blob", status(404), CODE.NOT_FOUND, 1),
    blob("H29 403 for a blob", status(403), CODE.PERMISSION_DENIED, 1),
    *(
        manifest(f"H29 {status_code} with a gigabyte", large(status_code), code, 1)
        for status_code, code in ((401, CODE.UNAUTHENTICATED), (403, CODE.PERMISSION_DENIED), (404, CODE.NOT_FOUND))
    ),
    *(
        manifest(f"H29 {status_code} with ANSI", errors(status_code, "X", ANSI), code, 1, says=r"\\x1b\[31mred")
        for status_code, code in ((403, CODE.PERMISSION_DENIED), (404, CODE.NOT_FOUND), (418, UNAVAILABLE))
    ),
    Case(
        "H30 a connection that closes as we ask",
        lambda scene: scene.registry.on("GET", "", _answer_then_close),
        DONE,
        1,
    ),
)


def _wrong(exchange: Exchange):
    answer = exchange.default()
    return type(answer)(answer.status, answer.headers, bytes(len(answer.body)))


def _answer_then_close(exchange: Exchange) -> None:
    exchange.answer(exchange.default())
    exchange.finish()


# T


def _challenge(*values: str) -> Behaviour:
    return status(401, headers=[("WWW-Authenticate", value) for value in values])


def _first_asked_with(*values: str) -> Callable[[Scene], None]:
    """The registry's own challenge, and *values* before it."""

    def arrange(scene: Scene) -> None:
        scene.bearer()
        own = scene.registry.auth.challenge(scene.registry, "")
        scene.registry.then("GET", "/manifests/", _challenge(*(value.replace("OWN", own) for value in values)))

    return arrange


def _unanswerable(value: str) -> Callable[[Scene], None]:
    def arrange(scene: Scene) -> None:
        scene.credential = True  # and then without it: two requests, neither of which shows it
        scene.registry.on("GET", "", _challenge(value))
        scene.after.append(lambda: _nothing_shown(scene.registry))

    return arrange


def _realm(realm: str) -> Callable[[Scene], None]:
    def arrange(scene: Scene) -> None:
        scene.credential = True
        scene.registry.on("GET", "", _challenge(f'Bearer realm="{realm.format(other=scene.other.url)}",service="x"'))

    return arrange


def _other_realm(scene: Scene) -> None:
    scene.credential = True
    scene.other.auth = Bearer(users=USERS)
    given = frozenset({f"token1-of-{scene.other.port}"})
    scene.registry.auth = Bearer(given=given, realm=f"{scene.other.url}/token")


def _same_site(scene: Scene) -> None:
    scene.terms(Terms(same_site=True))
    _realm("{other}/token")(scene)
    _not_asked(scene)


def _abroad(scene: Scene) -> None:
    """T06: the blob lies at B, and B wants a token of a realm."""
    scene.bearer()
    scene.blob(redirect(f"{scene.other.url}/x"))
    scene.other.on("GET", "/x", _challenge(f'Bearer realm="{scene.other.url}/token",service="x"'))

    def bare() -> None:
        assert [one.path for one in scene.other.log] == ["/x"]
        assert "authorization" not in scene.other.log[0].headers

    scene.after.append(bare)


def _cookies(scene: Scene) -> None:
    scene.registry.on("GET", "/manifests/", lie(set_cookie="session=1"))
    scene.after.append(lambda: _nothing_shown(scene.registry))


def _token(behaviour: Behaviour, times: int | None = None, **auth: object) -> Callable[[Scene], None]:
    def arrange(scene: Scene) -> None:
        scene.bearer(**auth)
        if behaviour is not WELL:
            scene.registry.on("GET", "/token", behaviour, times)

    return arrange


def _endless(exchange: Exchange) -> None:
    exchange.head(200, [("Connection", "close")])
    while True:
        exchange.send(bytes(1 << 20))


def _own_scope(scene: Scene) -> None:
    _first_asked_with(f'Bearer realm="{scene.registry.url}/token",service="s",scope="repository:other:push,*"')(scene)

    def own() -> None:
        scopes = {one.form["scope"] for one in scene.registry.requests("*", "/token")}
        assert scopes == {"repository:team/app:pull"}

    scene.after.append(own)


def _bound_elsewhere(scene: Scene) -> None:
    scene.registry.auth, scene.credential, scene.server_address = Basic(USERS), True, "other.io"
    scene.after.append(lambda: _nothing_shown(scene.registry))


NO_TOKENS = {
    "nothing": b"{}",
    "an empty one": b'{"token":""}',
    "a number": b'{"token":123}',
    "a page": b"<html>",
    "CR and LF": b'{"token":"a\\r\\nX: y"}',
    "100 kB": json.dumps({"token": "x" * 100_000}).encode(),
    "a gzip bomb": gzip.compress(bytes(1 << 20)),
}
T = (
    Case("T01 both offered", _first_asked_with('Basic realm="x"', "OWN"), DONE, 1, "/token"),
    Case("T01 an unknown one first", _first_asked_with("Negotiate abc==", "OWN"), DONE, 1, "/token"),
    Case("T01 both in one header", _first_asked_with('Digest nonce="a,b", OWN'), DONE, 1, "/token"),
    *(
        Case(f"T01 {value[:20]!r}", _unanswerable(value), CODE.UNAUTHENTICATED, 2, "", "in no way that is known")
        for value in ("garbage", 'Bearer realm="', 'Digest nonce="x"', "Bearer " + "x" * 5000)
    ),
    Case("T02 a realm on another host", _other_realm, DONE, 0, "/token"),
    *(
        Case(f"T03 a realm at {realm}", _realm(realm), CODE.UNAUTHENTICATED, requests, "")
        for realm, requests in (
            ("http://169.254.169.254/", 1),
            ("http://0.0.0.0/", 1),
            ("http://u:p@127.0.0.1/", 2),
            ("ftp://127.0.0.1/", 2),
            ("/token", 2),
        )
    ),
    Case("T04 another site", _same_site, CODE.UNAUTHENTICATED, 2, "", "another site"),
    Case("T06 a store that wants a token", _abroad, CODE.UNAUTHENTICATED, 1, says="credentials are not shown there"),
    Case("T07 cookies", _cookies, DONE, 1),
    Case(
        "T09 40 MiB of a token", _token(large(200)), CODE.RESOURCE_EXHAUSTED, 1, "/token", "larger than 1048576 bytes"
    ),
    Case("T09 an endless token", _token(_endless), CODE.RESOURCE_EXHAUSTED, 1, "/token"),
    *(
        Case(f"T10 {what}", _token(status(200, data)), CODE.UNAUTHENTICATED, 2, "/token", "gave no token")
        for what, data in NO_TOKENS.items()
    ),
    *(
        Case(f"T11 {what}", _token(WELL, more=more), DONE, 1, "/token")
        for what, more in (
            ("expires_in -5", {"expires_in": -5}),
            ("expires_in 0", {"expires_in": 0}),
            ("expires_in 2^63-1", {"expires_in": 2**63 - 1}),
            ("no expires_in", {}),
            ("issued_at 1970", {"expires_in": 300, "issued_at": "1970-01-01T00:00:00Z"}),
            ("issued_at garbage", {"expires_in": 300, "issued_at": "garbage"}),
        )
    ),
    *(
        Case(f"T12 a realm with {what} twice", _token(behaviour, 2), DONE, 3, "/token")
        for what, behaviour in (("429", busy("3")), ("503", status(503)), ("RST", drop()))
    ),
    Case("T12 a realm with 503 for ever", _token(status(503)), UNAVAILABLE, 5, "/token"),
    Case("T14 a scope of the challenge's", _own_scope, DONE, 1, "/token"),
    Case("T16 a credential for another server", _bound_elsewhere, CODE.UNAUTHENTICATED, 1, ""),
    Case(
        "T21 what a peer says",
        lambda scene: scene.registry.on("GET", "", errors(403, "\x00\x1b]0;x\x07", ANSI + PASSWORD)),
        CODE.PERMISSION_DENIED,
        1,
        "",
    ),
)
