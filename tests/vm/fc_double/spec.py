"""What firecracker.yaml allows, as a validator that is made from it at run time: every object strict (a field that it does
not name is refused, as Firecracker's deny_unknown_fields does), required fields, types, enums and ranges; and from its
words, which requests come before the machine runs and which after. The file is Firecracker's own, unchanged (Apache-2.0)."""

import json
import re

import yaml

UNSUPPORTED_AFTER = "The requested operation is not supported after starting the microVM."
UNSUPPORTED_BEFORE = "The requested operation is not supported before starting the microVM."
TYPES = {"string": str, "boolean": bool, "object": dict, "array": list, "integer": int}
U64_MAX = 2**64 - 1


class Refused(Exception):
    """The words of a fault_message."""


def no_duplicates(pairs):
    seen = {}
    for key, value in pairs:
        if key in seen:
            raise Refused(f"duplicate field `{key}`")
        seen[key] = value
    return seen


def no_constant(text):
    raise Refused(f"{text} is not JSON")


def parse(body):
    try:
        return json.loads(body, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except ValueError as e:
        raise Refused(f"An error occurred when deserializing the json body of a request: {e}.") from None


class Spec:
    def __init__(self, text):
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self.document = yaml.load(text, Loader=loader)
        self.version = str(self.document["info"]["version"])
        self.paths = [(re.compile("^" + re.sub(r"\{[^}]+\}", "([^/]+)", path) + "$"), path, item)
                      for path, item in self.document["paths"].items()]

    def definition(self, name):
        return self.document["definitions"][name]

    def resolve(self, schema):
        while "$ref" in schema:
            schema = self.definition(schema["$ref"].rsplit("/", 1)[1])
        return schema

    # -- values --

    def check(self, schema, value, where="the body"):
        schema = self.resolve(schema)
        kind = schema.get("type", "object")
        if not isinstance(value, TYPES[kind]) or (kind == "integer" and isinstance(value, bool)):
            raise Refused(f"invalid type: {where} is not a {kind}")
        getattr(self, f"check_{kind}", lambda *_: None)(schema, value, where)

    def check_string(self, schema, value, where):
        allowed = schema.get("enum")
        if not allowed:
            return
        # YAML reads an unquoted None as text and Off as false.
        allowed = ["Off" if a is False else str(a) for a in allowed]
        insensitive = "case-insensitive" in schema.get("description", "")
        if value not in allowed and not (insensitive and value.lower() in [a.lower() for a in allowed]):
            raise Refused(f"unknown variant `{value}` of {where}, expected one of {', '.join(allowed)}")

    def check_integer(self, schema, value, where):
        low, high = schema.get("minimum", 0), schema.get("maximum", U64_MAX)
        if not low <= value <= high:
            raise Refused(f"invalid value: {where} is {value}, expected {low} to {high}")

    def check_array(self, schema, value, where):
        for i, item in enumerate(value):
            self.check(schema["items"], item, f"{where}[{i}]")

    def check_object(self, schema, value, where):
        known, more = schema.get("properties", {}), schema.get("additionalProperties")
        for key, item in value.items():
            if key in known:
                self.check(known[key], item, key)
            elif not more:
                raise Refused(f"unknown field `{key}` in {where}, expected one of {', '.join(sorted(known))}")
            elif isinstance(more, dict):
                self.check(more, item, key)
        for key in schema.get("required", []):
            if key not in value:
                raise Refused(f"missing field `{key}` in {where}")

    # -- requests --

    def find(self, method, path):
        """The operation and the ids in the path. Literal paths win over those with an id."""
        for pattern, template, item in sorted(self.paths, key=lambda p: p[1].count("{")):
            match = pattern.match(path)
            if match and method.lower() in item:
                return template, item[method.lower()], match.groups()
        raise Refused(f"Invalid request method and/or path: {method} {path}.")

    def check_request(self, method, path, body, is_running):
        """Return: the path's template, its ids and the body. Raises Refused."""
        template, operation, ids = self.find(method, path)
        parameters = operation.get("parameters", [])
        schema = next((p for p in parameters if p["in"] == "body"), None)
        if schema is None and body:
            raise Refused(f"{method} request cannot have a body.")
        if schema is not None and not body:
            raise Refused(f"Empty {method} request.")
        for name in ids:
            if not re.fullmatch(r"\w+", name):
                raise Refused("API Resource IDs can only contain alphanumeric characters and underscores.")
        value = parse(body) if body else None
        if schema is not None:
            self.check(self.partial(template, method, schema["schema"]), value)
            for parameter, name in zip([p for p in parameters if p["in"] == "path"], ids):
                if value.get(parameter["name"], value.get("id")) != name:
                    raise Refused("The id from the path does not match the id from the body!")
        self.check_order(template, method, operation, value, is_running)
        return template, ids, value

    def partial(self, template, method, schema):
        """PATCH /machine-config takes "a subset", and the same definition."""
        if method != "PATCH" or template != "/machine-config":
            return schema
        return {k: v for k, v in self.resolve(schema).items() if k != "required"}

    def check_order(self, template, method, operation, value, is_running):
        words = operation.get("summary", "") + " " + operation.get("description", "")
        before = "Pre-boot only" in words or "before machine startup" in words or "fail after machine startup" in words
        before = before or template in ("/logger", "/metrics", "/serial") or (template, method) == ("/hotplug/memory", "PUT")
        after = "Post-boot only" in words or template == "/vm" or (template, method) == ("/hotplug/memory", "PATCH")
        if template == "/actions":
            before = value["action_type"] == "InstanceStart"
            after = not before
        if is_running and before and "before or after" not in words:
            raise Refused(UNSUPPORTED_AFTER)
        if not is_running and after:
            raise Refused(UNSUPPORTED_BEFORE)
