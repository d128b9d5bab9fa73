"""A VM's disk has the size that the configuration gives its type, whatever the image has, and costs what is written."""

import harness
from harness import daemon
import pytest
from test_isolation import shell

pytestmark = pytest.mark.usefixtures("each_vmm")


def test_a_disk_is_as_large_as_configured(tmp_path):
    image = harness.guest_image("shell")
    assert (image / "current" / "rootfs.ext4").resolve().stat().st_size < 200 << 20
    # By its type's own key: what [image] says is not there.
    with daemon(image=tmp_path, vm={"cli_disk": "400", "cli_image": image}) as d:
        assert d.mctl("--json", "status").json["image"]["problem"] is None
        vm = d.create(wait=True)
        folder = d.state / "users" / vm["id"]
        used = sum(p.stat().st_blocks * 512 for p in folder.iterdir() if p.stat().st_nlink == 1)
        assert used < 50 << 20, "a larger disk costs no more"
        said = shell(d, vm, "df -m / | tail -n 1; dd if=/dev/zero of=/big bs=1M count=220 && sync && ls -l /big")
        size = next(int(word) for word in said.split() if word.isdigit())
        assert 330 < size <= 400 and str(220 << 20) in said, said
