#!/usr/bin/python3
"""Writes doc/incident-replay.md: the incident's host is built, broken, looked at by the incident's own means, and then by the
doctor. What stands in the document's boxes is what was printed. test_incident.py holds the document against new runs."""
import re
import subprocess
import tempfile

import lab

DOCUMENT = lab.HERE.parents[1] / "doc/incident-replay.md"
CAUSE = "ebtables.drop output"
PING = "ping -n -c 5 -W 1 192.168.0.2"

HEAD = """# The incident of 24 October, replayed

*Written by `tests/doctor/incident_replay.py` from a real run and held against new ones by
`tests/doctor/test_incident.py`; do not edit it by hand.*

On 24 October 2025 no packet reached any VM of a host. Every VM had booted, every check was green, and after a day the
report ended with five hypotheses. Here is that host again, in a network namespace: `br0` with 192.168.0.1/16, 26 TAPs,
VMs that live, and one that answers nothing. What is broken is not known to the doctor. In this run it was one rule,
`ebtables -A OUTPUT -o fc-vm-69fac -j DROP`.

## What the engineer saw

The host's way to the VM is right, the TAP is up, a port of `br0` and forwarding. The question is on the bridge; on the
TAP there is nothing.
"""

DOCTOR = """
## What one command would have said

The TAP and the address are all that it is told. It needs no daemon and no record, and changes nothing.
"""

ASKED = """
Exit status {status}: a root cause was found. The red line is the place, the sentence below it the cause, with the object
that does it and the counter that moved while the doctor's own packets were sent. What stands behind the place was not
reached, so nothing is said about it. Of the time that it took, a second is the wait for ARP's own retry.

## The repair

The rule is somebody's: asked for `--repair`, the doctor leaves it alone (the command is above, at "mend"). Asked by name, it
deletes that rule over netlink, asks again, and would put the rule back if that had not helped.
"""

REPAIRED = """
Exit status {status}: repaired, and proven by packets. By the engineer's own means:
"""

REST = """
## The other causes of the same picture

All of these give Test 1's picture to the last detail (UP, LOWER_UP, a port of `br0`, forwarding; who-has on `br0`; no frame on
the TAP; the neighbour incomplete), so no amount of looking at it again tells them apart. Each was made on this host, and this is
what the doctor named:

| what was broken | finding | the packet dies at | in the doctor's words |
|---|---|---|---|
"""

TAIL = """
## What the report's five hypotheses were worth

1. *ebtables filtering*: right in this run, and one of the causes above. The doctor reads the rules and sees which one
   counts its packets.
2. *Bridge netfilter disabled*: never a reason for this picture. With it on, only IP is looked at, and ARP was dead.
3. *MAC learning*: a broadcast does not need the FDB.
4. *virtio-net in the guest*: frames that the guest does not take are seen on the TAP, and wait there; here there were none.
5. *TAP flags*: read, and right. A TAP that is down, not a port or without a reader looks different: `tap.down`,
   `tap.not-enslaved`, `tap.no-holder`.
"""


def row(key, finding):
    """A line of the table of causes, without the doctor's words."""
    return f"| {key} | `{finding['id']}` | `{finding['dies_at']}` |"


def masked(text):
    """The words, without what is another one in each run: times, counts, handles, names of journals, where lines end (also
    between a number and its unit)."""
    for pattern, instead in (
        (r"\d\d:\d\d:\d\d\.\d+", "TIME"), (r"\br\d{8}T\d{6}-[0-9a-f]+", "JOURNAL"), (r"\d+(\.\d+)?\s+(ms|s)\b", "N ms"),
        (r"packets\s+\d+", "packets N"), (r"\d+\s+packets\b", "N packets"), (r"time[ =]\d[\d.]*", "time N"), (r"\b\d+% ", "N% "),
        (r"rtt .*", "rtt"), (r"\b\d+\s+%\s+sure", "sure"), (r"handle\s+\d+", "handle N"), (r"icmp_seq=\d+", "icmp_seq=N"), (r"\+\d+ errors", "+N errors"),
        (r"^pipe \d+$", ""), (r"[A-Z]+ *$", lambda m: "NEIGHBOUR" if m[0].strip() in ("INCOMPLETE", "FAILED") else m[0]),
    ):
        text = re.sub(pattern, instead, text, flags=re.MULTILINE)
    lines = []
    for line in text.splitlines():
        if not lines or line != lines[-1]:  # how often a line of a capture stands there is chance
            lines.append(line)
    return "\n".join(lines).split()


def box(command, output):
    kept = [line.rstrip() for line in output.strip("\n").splitlines() if "could not read" not in line]
    return "```\n# " + command + "\n" + "\n".join(kept) + "\n```\n"


class Seen:
    """Runs commands on the host, as its administrator."""

    def __init__(self, host, journal):
        self.host, self.journal = host, journal

    def __call__(self, command):
        return box(command, self.host.lab.run(*command.split(), check=False))

    def capture(self, device):
        """tcpdump while the VM is pinged."""
        command = f"tcpdump -n -l --immediate-mode -i {device} arp and host 192.168.0.2"
        with subprocess.Popen(["nsenter", f"--net=/run/netns/{self.host.lab.name}", *command.split()], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) as dump:
            while "listening" not in dump.stderr.readline():
                pass
            self.host.lab.run(*PING.split(), check=False)
            dump.terminate()
            out, err = dump.communicate()
        return box(command.replace(" -l --immediate-mode", ""), out + "".join(
            line + "\n" for line in err.splitlines() if "captured" in line))

    def doctor(self, *more, target=True):
        answer = self.host.lab.doctor(self.host.vm if target else None, *more, json_out=False, mac=False,
                                      env={"MC_DOCTOR_JOURNAL": self.journal})
        words = " ".join(["mctl doctor --bridge br0", f"--tap {self.host.vm.tap} --guest-ip {self.host.vm.address} --guest-port {lab.PORT}"
                          if target else "", *more])
        # The engineer's host is the whole machine.
        return answer, box(" ".join(words.split()), answer.out.replace(f" --netns {self.host.lab.name}", ""))


def replay(host):
    """The part of the document that one broken host gives."""
    with tempfile.TemporaryDirectory() as journal:
        seen = Seen(host, journal)
        text = HEAD + "\n" + seen(PING) + seen(f"bridge link show dev {host.vm.tap}") + seen("ip neigh show 192.168.0.2")
        text += seen.capture("br0") + seen.capture(host.vm.tap)
        host.lab.cold()
        asked, shown = seen.doctor("--explain")
        text += DOCTOR + "\n" + shown + ASKED.format(status=asked.status)
        text += "\n" + seen.doctor("--repair")[1]
        repaired, shown = seen.doctor(f"--repair={CAUSE.split()[0]}", "--explain")
        return text + shown + REPAIRED.format(status=repaired.status) + "\n" + seen(PING)


def write():
    from test_incident import BY_KEY, CAUSES, Incident

    table = []
    for cause in CAUSES:
        with Incident() as host:
            cause.inject(host)
            host.lab.cold()
            if cause.key == CAUSE:
                text = replay(host)
                cause.inject(host)
                host.lab.cold()
            first = host.lab.doctor(host.vm).first
            title = first["title"].replace("|", "\\|")
            table.append(f"{row(cause.key, first)} {title} |")
    DOCUMENT.write_text(text + REST + "\n".join(table) + "\n" + TAIL)


if __name__ == "__main__":
    write()
