import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))


@pytest.fixture(scope="session", autouse=True)
def test_guest():
    """The image that VMs of these tests are made of; nothing is done when it is there."""
    import harness
    harness.guest_image()


@pytest.fixture(params=["qemu", "firecracker"])
def each_vmm(request, monkeypatch):
    """The test runs over both drivers: over Firecracker's double on a host without KVM."""
    import harness
    monkeypatch.setattr(harness, "default_vmm", request.param)
    return request.param
