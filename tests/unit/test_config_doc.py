"""doc/master-controller.conf has every key of src/model/config.c, in its section, with its default, and no other."""

import configparser
import pathlib
import re

HERE = pathlib.Path(__file__).resolve().parents[2]


def test_every_key_with_its_default():
    rows = re.findall(r'\{"(\w+)", "(\w+)", "([^"]*)", KIND_', (HERE / "src/model/config.c").read_text())
    assert len(rows) > 30
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(HERE / "doc/master-controller.conf")
    written = {(s, k, v) for s in parser.sections() for k, v in parser[s].items()}
    assert written == set(rows)
