import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import golden  # noqa: E402


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """The good browser image. Nobody changes it."""
    return golden.make_image(tmp_path_factory.mktemp("good") / "browser")


@pytest.fixture(scope="session")
def good_cli(tmp_path_factory):
    return golden.make_image(tmp_path_factory.mktemp("good-cli") / "cli", "cli")


@pytest.fixture
def image(good, tmp_path):
    """A copy of the good image, to be broken."""
    return golden.copy_image(good, tmp_path / "image")
