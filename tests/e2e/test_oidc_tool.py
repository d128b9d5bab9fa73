"""The tool of the profile generic-oidc, on this host, with a real provider, and answers that are not those of its login. Each is
said in words that the daemon knows (tests/unit/test_login.c), and leaves no file."""

import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from harness import HERE, free_port, run, wait_for
from test_login import Provider, make_certificates

# A browser that comes back with $ANSWER, whatever its user was asked; in the background, as a browser does.
BROWSER = """#!/usr/bin/python3
import os, sys, urllib.parse, urllib.request
asked = {k: v[0] for k, v in urllib.parse.parse_qs(urllib.parse.urlsplit(sys.argv[1]).query).items()}
assert asked["code_challenge_method"] == "S256" and asked["redirect_uri"].startswith("http://127.0.0.1:")
answer = os.environ["ANSWER"].replace("RIGHT", asked["state"])
if os.fork() == 0:
    page = urllib.request.urlopen(asked["redirect_uri"] + "?" + answer).read().decode()
    open(os.environ["PAGE"], "w").write(page)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("oidc")
    make_certificates(folder / "certificates", "localhost")
    (folder / "browser").write_text(BROWSER)
    (folder / "browser").chmod(0o755)
    port = free_port()
    provider = Provider(folder / "certificates", f"https://localhost:{port}", f"127.0.0.1:{port}")
    yield folder, port, provider
    provider.stop()


def log_in(world, answer):
    folder, port, _ = world
    env = {**os.environ, "HOME": str(folder), "BROWSER": str(folder / "browser"), "ANSWER": answer, "PAGE": str(folder / "page"),
           "SSL_CERT_FILE": str(folder / "certificates/ca.crt"), "OIDC_ISSUER": f"https://localhost:{port}",
           "OIDC_CLIENT_ID": "master-controller"}
    r = run(HERE / "guest/recipe/files/usr/bin/mc-oidc", "login", check=False, env=env, timeout=60)
    assert r.returncode == 1 and not (folder / ".config").exists()
    return r.stderr.strip()


def test_a_wrong_state_a_refusal_a_code_of_no_use_and_a_provider_that_is_down(world):
    folder, port, provider = world
    said = "mc-oidc: the answer carries a wrong state: it does not belong to this login"
    assert log_in(world, "code=x&state=another") == said and log_in(world, "code=x") == said
    assert log_in(world, "error=access_denied&state=another") == said, "nor does a refusal that belongs to another login count"
    wait_for(lambda: (folder / "page").exists() and "The login failed" in (folder / "page").read_text())
    assert log_in(world, "error=access_denied&error_description=pLaNtEd&state=RIGHT") == "mc-oidc: the provider says access_denied"
    assert log_in(world, "code=x&state=RIGHT") == "mc-oidc: the provider says invalid_grant"
    provider.stop()
    assert log_in(world, "") == f"mc-oidc: the provider localhost:{port} cannot be reached: ConnectionRefusedError"
