"""The operator's dashboard in a real browser, on a real daemon whose VMM does nothing: what is there, what is red, what
changes while one looks, and who may look."""

import json
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import harness
from harness import daemon, idle, image_without_agent, wait_for
from headless import browser


def sign_in(b, d):
    b("goto", url=f"http://127.0.0.1:{d.port}/")
    b.state("login")
    b("fill", selector="#token", text=d.token)
    b("press", key="Enter")
    b.state("live")
    b.wait("!document.getElementById('board').hidden")


def port(vm):
    return f"document.querySelector('.port[data-key=\"{vm['tap']}\"]')"


def key(vm):
    return f"document.querySelector('.port[data-key=\"{vm['tap']}\"] .key')"


def test_who_may_look():
    with idle() as d, browser() as b:
        b("goto", url=f"http://127.0.0.1:{d.port}/")
        b.state("login")
        b.accessible()
        b.look("login")
        b("fill", selector="#token", text="0" * 64)
        b("press", key="Enter")
        b.wait("document.getElementById('login-error').textContent.includes('This is not the admin token.')")
        assert "admin_token_file" in b.text("#login-error")
        sign_in(b, d)
        assert b("eval", code="document.cookie") == "" and b("eval", code="JSON.stringify([localStorage, sessionStorage])") == "[{},{}]"
        b("goto", url=f"http://127.0.0.1:{d.port}/")
        b.state("live")
        # Another token: what the old one gave is of no use.
        d.stop()
        d.token_file.unlink()
        d.start()
        b.state("login")
        sign_in(b, d)
        b.to("another tab")("goto", url=f"http://127.0.0.1:{d.port}/")
        b.state("live")
        b.to("")("click", selector="#leave")
        b.state("login")
        b.to("another tab").state("login")
        b.to("")("goto", url=f"http://127.0.0.1:{d.port}/")
        b.state("login")
        b.unhurt()


def test_what_is_there_and_what_changes():
    """One VM after the other, a finding that comes and goes, an end, a session; nothing is reloaded."""
    with idle(vm={"quota_per_user": "100"}) as d, browser() as b:
        sign_in(b, d)
        b.wait("document.getElementById('vms-none').textContent === 'There is no VM.'")
        assert "Everything is as it should be." in b.text("#findings-part")
        b.look("empty")

        vm, other = d.create("ann"), d.create("bob")
        b.wait(f"{port(vm)} && {port(other)}")
        b.wait(f"{key(vm)}.getAttribute('aria-label').includes('cli VM of ann, booting')")
        b.wait("document.getElementById('vms').children.length === 2")
        session = d.admin("POST", "/api/auth/start", {"userId": "carl", "provider": "demo"}).json["session"]
        b.wait("document.getElementById('sessions').innerText.includes('carl')")

        # Red: its port is down. By the stream's own look at the bridge, not by a VM's event.
        d.netns("ip", "link", "set", vm["tap"], "down")
        b.wait(f"{port(vm)}.classList.contains('bad')")
        b.wait("document.getElementById('findings').innerText.includes('is down: nothing reaches the VM')")
        assert vm["tap"] in b.text("#findings") and f"mctl doctor --vm {vm['id']}" in b.text("#findings")
        assert "New finding" in b("eval", code="document.getElementById('live').textContent")
        b.accessible()
        b.look("finding")
        d.netns("ip", "link", "set", other["tap"], "nomaster")
        b.wait(f"{key(other)}.getAttribute('aria-label').includes('was taken off the bridge')")
        b.look("off-the-bridge")
        for tap, *words in ((vm["tap"], "up"), (other["tap"], "master", "br0")):
            d.netns("ip", "link", "set", tap, *words)
        b.wait("document.getElementById('findings').children.length === 0")

        # The story, by keyboard; it goes on while it is open, to the end.
        b("eval", code=f"{key(vm)}.focus()")
        b("press", key="ArrowRight")
        b("press", key="ArrowLeft")
        b("press", key="Enter")
        b.wait("document.getElementById('story-events').innerText.includes('claimed')")
        assert b("eval", code="document.activeElement.id") == "story-title"
        assert vm["id"] in b.text("#story-facts") and "ann" in b.text("#story-facts")
        d.mctl("vm", "destroy", vm["id"], "--reason", "no longer <b>needed</b>")
        b.wait("document.getElementById('story-events').innerText.includes('No longer <b>needed</b>')")
        b.wait("document.getElementById('story-events').innerText.includes('Evidence: evidence/vm-')")
        b.wait(f"!{port(vm)} && document.getElementById('vms').innerText.includes('stopped')")
        b.wait("document.getElementById('port-words').innerText.startsWith('Choose a port')")
        b.accessible()
        b.look("story")
        b("press", key="Escape")
        assert b("eval", code="document.getElementById('story').hidden") and vm["id"] not in b("eval", code="location.href")

        d.mctl("auth", "cancel", session["id"])
        b.wait("document.getElementById('sessions').innerText.includes('cancelled')")
        b.unhurt()


def test_a_vm_that_sleeps(tmp_path):
    """It is no finding that it has no port; its story says why it sleeps, and what wakes it."""
    with daemon(start=False, image=image_without_agent(tmp_path)) as d, browser() as b:
        shutil.copy(harness.BUILD / "tests/vm/resting-vmm", d.dir / "resting-vmm")
        d.config["vm"].update(qemu_binary=d.dir / "resting-vmm", accel="tcg", stop_timeout="0.3")
        d.start()
        vm = d.create("ann", wait=True)
        sign_in(b, d)
        b.wait(f"{key(vm)}.getAttribute('aria-label').includes('cli VM of ann, running')")
        d.mctl("vm", "hibernate", vm["id"])
        b.wait(f"document.getElementById('vms').innerText.includes('hibernated') && !{port(vm)}")
        b.wait("document.getElementById('findings-part').innerText.includes('Everything is as it should be.')")
        b("click", selector="#vms button")
        b.wait("document.getElementById('story-facts').innerText.includes('hibernated, for')")
        assert f"when it is used, or by: mctl vm resume {vm['id']}" in b.text("#story-facts")
        b.wait("document.getElementById('story-events').innerText.includes('was saved in')")
        assert b("eval", code="document.querySelector('#story-finding.bad') === null")
        b.accessible()
        b.look("hibernated")
        d.mctl("vm", "resume", vm["id"])
        b.wait(f"{key(vm)}?.getAttribute('aria-label').includes('cli VM of ann, running')")
        b.wait("!document.getElementById('story-facts').innerText.includes('mctl vm resume')")
        b.unhurt()


def test_hundreds_of_vms():
    """200 VMs come while one looks; all are there, one is red, and the page can still be used."""
    with idle(vm={"memory_percent": "10000"}) as d, browser() as b:
        sign_in(b, d)
        for i in range(200):
            assert d.request("POST", f"/api/users/u{i}/vm", {}, unix=True).status == 201
        b.wait("document.querySelectorAll('.port').length === 200", 60)
        b.wait("document.getElementById('vms').children.length === 200")
        vms = d.request("GET", "/api/vms", unix=True).json["vms"]
        d.netns("ip", "link", "set", vms[100]["tap"], "down")
        b.wait("document.querySelectorAll('.port.bad').length === 1")
        assert "200 ports, 1 red" in b.text("#bridge-words")
        assert b("eval", code="document.querySelectorAll('.key[tabindex=\"0\"]').length") == 1
        b("fill", selector="#filter", text=vms[100]["user"])
        b.wait("document.getElementById('vms').children.length < 20")
        b.look("hundreds")
        b("size", width=1280, height=900)
        b("click", selector="#vms button")
        b.wait("document.getElementById('story-events').innerText.includes('claimed')")
        b.accessible()
        b.unhurt()
        out = d.mctl("status").out
        assert "200 ports" in out and f"!! is down" in out and "and 159 more" in out
        assert len(out.splitlines()) < 80


def test_the_doctor_is_asked():
    with idle() as d, browser() as b:
        vm = d.create("ann")
        d.netns("ip", "link", "set", vm["tap"], "down")
        sign_in(b, d)
        b("goto", url=f"http://127.0.0.1:{d.port}/#{vm['id']}")
        b.wait("document.getElementById('story-events').innerText.includes('claimed')")
        b("click", selector="#story-ask")
        b.wait("document.querySelector('#story-doctor article.bad')", 60)
        assert "tap.down" in b.text("#story-doctor") and vm["tap"] in b.text("#story-doctor")
        b.accessible()
        b.look("doctor")


def test_a_daemon_that_dies_and_comes_back():
    """It says so, keeps what it knows, and comes back by itself with what was missed."""
    with idle() as d, browser() as b:
        vm = d.create("ann")
        sign_in(b, d)
        b.wait(f"{port(vm)}")
        d.stop(9)
        b.state("offline")
        assert "as it should be" not in b.text("#findings-part")
        assert "The controller does not answer." in b.text("#trouble") and b("eval", code=f"Boolean({port(vm)})")
        b.accessible()
        b.look("offline")
        d.start()
        b.state("live")
        assert b("eval", code="document.getElementById('trouble').hidden")
        other = d.create("bob")
        b.wait(f"{port(other)}")
        b.unhurt()


def test_hostile_text_is_only_text():
    """What a guest wrote on its console, and what a person gave as a reason."""
    with idle() as d, browser() as b:
        vm = d.create("ann")
        log = d.state / "users" / vm["id"] / "console.log"
        evil = "\x1b]0;owned\x07<img src=x onerror=\"document.title='owned'\"> \u202e \x1b[31m"
        with log.open("a") as f:
            f.write(evil * 3 + "\n")
        sign_in(b, d)
        b("goto", url=f"http://127.0.0.1:{d.port}/#{vm['id']}")
        b.wait("document.getElementById('story-console').innerText.includes('<img src=x')")
        assert "owned\x07" not in b.text("#story-console") and "\u202e" not in b.text("#story-console")
        d.mctl("vm", "destroy", vm["id"], "--reason", "<script>alert(1)</script>")
        b.wait("document.getElementById('story-events').innerText.includes('<script>alert(1)</script>')")
        assert b("eval", code="document.querySelectorAll('main img, main script').length") == 0
        assert "owned" not in b("eval", code="document.title")
        b.unhurt()
