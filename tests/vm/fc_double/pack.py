"""Packs the double into executables: one file each, that runs wherever /usr/bin/python3 is to be seen."""

import io
import json
import pathlib
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
MODULES = ["__main__.py", "spec.py", "machine.py", "firecracker.py", "jailer.py", "vsock.py", "channel.py", "firecracker.yaml"]


def pack(path, is_jailer=False, **faults):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as z:
        for name in MODULES:
            z.writestr(name, (HERE / name).read_bytes())
        z.writestr("options.py", "")
        z.writestr("options.json", json.dumps({"is_jailer": is_jailer, "faults": faults}))
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"#!/usr/bin/python3 -sE\n" + data.getvalue())
    path.chmod(0o755)
    return path
