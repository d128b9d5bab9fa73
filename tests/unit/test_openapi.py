"""doc/openapi.yaml against the table in src/api/routes.c: the same methods and paths, and the same callers. That real
answers have the described shape is checked by tests/harness.py, through which every request of the tests goes."""

import pathlib
import re

import yaml

HERE = pathlib.Path(__file__).resolve().parents[2]
SPEC = yaml.safe_load((HERE / "doc/openapi.yaml").read_text())
CALLERS = {"API_PUBLIC": [], "API_ADMIN": [{"admin": []}], "API_USER": [{"admin": []}, {"user": []}],
           "API_SESSION": [{"admin": []}, {"user": []}, {"session": []}]}


def rows():
    text = (HERE / "src/api/routes.c").read_text()
    found = re.findall(r'\{"([A-Z]+)",\s*"([^"]+)",\s*(\w+),\s*(API_\w+),', text)
    assert len(found) >= 18
    return {(method.lower(), path): (handler, access) for method, path, handler, access in found}


def described():
    return {(method, path): operation for path, item in SPEC["paths"].items()
            for method, operation in item.items() if method in ("get", "post", "put", "patch", "delete")}


def test_every_route_is_described_and_every_description_is_a_route():
    assert set(rows()) == set(described())


def test_callers_are_as_described():
    for key, (handler, access) in rows().items():
        said = described()[key].get("security", SPEC["security"])
        # The WebSocket is accepted first and closed with a code: its handler asks, not the table.
        expected = CALLERS["API_SESSION"] if handler == "route_session_websock" else CALLERS[access]
        assert said == expected, key


def test_references_lead_somewhere():
    def walk(node):
        if isinstance(node, dict):
            if "$ref" in node:
                target = SPEC
                for part in node["$ref"].removeprefix("#/").split("/"):
                    target = target[part]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)
    walk(SPEC)
