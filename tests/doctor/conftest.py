"""Shared by the tests of the doctor: they need root, and programs that were built.

They wait more than they work, so several at once are faster: pytest -n 4 (python3-pytest-xdist).
MC_STATUS=FILE: what failed, and what the doctor said, one line each.
"""
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import lab  # noqa: E402

failures = []


def pytest_configure(config):
    if os.geteuid() != 0:
        pytest.exit("the tests of the doctor need root: they make network namespaces", 2)
    for program in (lab.WIRE, lab.BPF_ATTACH):
        if not program.exists():
            pytest.exit(f"{program} was not built: MC_BUILD_DIR says where to look", 2)
    lab.sweep()


def pytest_runtest_logreport(report):
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        failures.append(f"{report.nodeid.split('/')[-1]}  {crash.message if crash else report.longrepr}"[:900].replace("\n", " "))


def pytest_sessionfinish(session):
    target = os.environ.get("MC_STATUS")
    if target and not os.environ.get("PYTEST_XDIST_WORKER"):
        pathlib.Path(target).write_text(f"{session.testscollected} tests, {len(failures)} failed\n" + "\n".join(sorted(failures)) + "\n")


@pytest.fixture(scope="session")
def mctl():
    assert lab.MCTL.exists(), f"{lab.MCTL} was not built: MCTL says where it is"
