"""Hosts that are large, that change while they are read, that have odd names, and a doctor who may not see all."""
import json
import subprocess
import threading
import time

import pytest

from faults import BY_KEY
from lab import MCTL, Lab
from test_catalogue import ONLY_INJECT, named

pytestmark = pytest.mark.skipif(bool(ONLY_INJECT), reason="there is no doctor")


def test_large_tables():
    """5,000 FDB entries, 2,000 neighbours, 500 routes, 20,000 rules; the last one is it."""
    with Lab() as lab:
        guest = lab.guest()
        other = lab.guest()
        lab.warm()
        lab.batch("\n".join(f"fdb add 02:aa:00:00:{n >> 8:02x}:{n & 255:02x} dev {other.tap} master static" for n in range(5000)), "bridge")
        lab.batch("\n".join(f"neigh add 192.168.{100 + (n >> 8)}.{n & 255} lladdr 02:aa:00:00:{n >> 8:02x}:{n & 255:02x} dev br0" for n in range(1, 900)))
        lab.batch("\n".join(f"route add 10.{n >> 8}.{n & 255}.0/24 dev br0" for n in range(500)))
        rules = "".join(f"ether saddr 02:bb:00:00:{n >> 8:02x}:{n & 255:02x} drop\n" for n in range(20000))
        lab.nft("table bridge big {\nchain c {\ntype filter hook output priority 0\n" + rules + "}\n}\n")
        assert lab.ping(guest.address)
        answer = lab.doctor(guest)
        assert answer.status == 0, answer
        assert answer.seconds < 5, answer
        lab.nft(f"add rule bridge big c oifname {guest.tap} drop")
        lab.cold()
        handle = lab.handles("bridge", "big", "c")[-1]
        assert not lab.ping(guest.address, 0.3)
        answer = lab.doctor(guest)
        assert (answer.first["id"], answer.first["dies_at"]) == ("nft.bridge-drop", "bridge.output"), answer
        assert named(answer.first, [f"handle {handle}"]) == []
        assert answer.seconds < 6, answer


def test_a_host_that_changes_meanwhile():
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        stop = threading.Event()

        def churn():
            n = 0
            while not stop.is_set():
                n += 1
                lab.batch(f"tuntap add dev churn{n % 7} mode tap\nlink set churn{n % 7} master br0 up\nneigh replace 192.168.9.{n % 200 + 1} lladdr "
                          f"02:cc:00:00:00:{n % 200:02x} dev br0\nroute replace 10.1.{n % 200}.0/24 dev br0\nlink del churn{n % 7}")
                lab.run("nft", "-f", "-", stdin=f"add table ip churn{n % 5}\nadd chain ip churn{n % 5} c\nadd rule ip churn{n % 5} c counter\ndelete table ip churn{n % 5}")

        thread = threading.Thread(target=churn)
        thread.start()
        try:
            for _ in range(6):
                answer = lab.doctor(guest)
                assert answer.status == 0, answer
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize("tap", ["fc\x1b[31mred", "a\"b\\c", "x'$(id)", "tap\u00e9\u2603", "-rf"])
def test_odd_names(tap):
    fault = BY_KEY["ebtables.drop output"]
    with Lab() as lab:
        guest = lab.guest(tap=tap)
        lab.ip("link", "set", "dev", tap, "alias", "line1\nline2\x07\x1b]0;title\x07")
        lab.warm()
        assert lab.doctor(guest).status == 0
        lab.bridge("link", "set", "dev", tap, "state", "0")
        lab.cold()
        answer = lab.doctor(guest)
        assert answer.status == 10, answer
        assert answer.first["id"] == "bridge.port-not-forwarding", answer
        told = lab.doctor(guest, "--explain", json_out=False)
        assert not [c for c in told.out if ord(c) < 32 and c != "\n"], repr(told.out)


def test_name_that_is_no_text():
    """A device's name may be any bytes; the document is UTF-8 all the same."""
    with Lab() as lab:
        guest = lab.guest()
        subprocess.run([b"ip", b"-n", lab.name.encode(), b"tuntap", b"add", b"dev", b"x\xff\xfey", b"mode", b"tap"], check=True)
        subprocess.run([b"ip", b"-n", lab.name.encode(), b"link", b"set", b"dev", b"x\xff\xfey", b"master", b"br0"], check=True)
        lab.warm()
        done = subprocess.run([str(MCTL), "--json", "doctor", "--netns", lab.name, "--bridge", "br0"], capture_output=True, check=False)
        assert done.returncode == 0, done
        document = json.loads(done.stdout.decode("utf-8"))
        assert len(document["targets"]) == 2
        assert guest.tap in [t["tap"] for t in document["targets"]]


@pytest.mark.parametrize("key", ["tap.down", "bridge.port-not-forwarding 0"], ids=lambda k: k.replace(" ", ","))
def test_without_root(key):
    """A user without rights sees link state and can connect: that is enough for much; what it cannot see is said."""
    fault = BY_KEY[key]
    with fault.bed() as bed:
        base = ["nsenter", f"--net=/run/netns/{bed.lab.name}", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", MCTL, "--json", "doctor",
                "--bridge", "br0", "--tap", bed.vm.tap, "--guest-ip", bed.vm.address, "--guest-mac", bed.vm.mac, "--guest-port", "6080"]
        done = subprocess.run(base, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done
        healthy = json.loads(done.stdout)
        assert healthy.get("healthy") is not False, healthy
        fault.apply(bed)
        done = subprocess.run(base, capture_output=True, text=True, check=False)
        document = json.loads(done.stdout)
        assert done.returncode == 10, done
        first = document["targets"][0]["findings"][0]
        assert (first["id"], first["dies_at"]) == (fault.id, fault.hop), first


def test_many_taps():
    """A sweep of 300 TAPs, ten of them alive, one dead by a rule."""
    with Lab() as lab:
        guests = [lab.guest() for _ in range(5)]
        lab.batch("\n".join(f"tuntap add dev old{n} mode tap\nlink set old{n} master br0 up" for n in range(295)))
        lab.warm()
        answer = lab.doctor()
        assert answer.status == 0, answer
        assert len(answer.json["targets"]) == 300
        assert answer.seconds < 5, answer
        lab.bridge("link", "set", "dev", guests[3].tap, "state", "0")
        answer = lab.doctor()
        assert answer.status == 10
        assert [t["tap"] for t in answer.json["targets"] if any(f["role"] == "root-cause" for f in t["findings"])] == [guests[3].tap], answer


def test_two_doctors_at_once():
    with Lab() as lab:
        guest = lab.guest()
        lab.warm()
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(lab.doctor(guest))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [a.status for a in answers] == [0] * 4, [str(a) for a in answers]
        time.sleep(0.2)
        assert set(lab.links()) == {"lo", "br0", guest.tap}
