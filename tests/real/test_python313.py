"""A real Python 3.13, whose own contexts are strict: the tests of TLS and proxies hold there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real.programs import run

pytestmark = [pytest.mark.needs("python3.13-for-tests", "openssl")]
CHECKOUT = Path(__file__).parents[2]

# What a program without our context meets: the CA that Go accepts is refused.
CONTROL = """
import pathlib, socket, ssl, sys, threading
from tests.fakes.certificates import Authority

authority = Authority(pathlib.Path(sys.argv[1]))
pair = authority.issue("server", "DNS:reg.test")
ours, theirs = socket.socketpair()

def serve():
    try:
        pair.server_context().wrap_socket(theirs, server_side=True)
    except OSError:
        pass

threading.Thread(target=serve, daemon=True).start()
context = ssl.create_default_context(cafile=authority.cert)
try:
    context.wrap_socket(ours, server_hostname="reg.test")
    print(sys.version_info[:2], "taken")
except ssl.SSLCertVerificationError as error:
    print(sys.version_info[:2], "refused:", error.verify_message)
"""


def test_private_cas_that_go_accepts_work_there(place):
    python = "python3.13-for-tests"
    said = run(python, "-c", CONTROL, place, cwd=CHECKOUT).stdout
    assert said.startswith("(3, 13) refused: ")
    files = ("tests/registry/test_tls.py", "tests/registry/test_proxies.py")
    done = run(python, "-W", "error", "-m", "pytest", *files, f"--basetemp={place}/t", cwd=CHECKOUT, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "[100%]" in done.stdout
    assert "skipped" not in done.stdout
