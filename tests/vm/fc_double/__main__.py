"""A double of Firecracker and of its jailer for hosts without KVM, packed into one executable file (build()'s work in
pack.py). It speaks Firecracker's API over its socket and refuses every request that firecracker.yaml does not allow, opens
everything as Firecracker does, as the unprivileged user that it runs as, and boots the guest with QEMU.

What it is: a check of what a controller says and does. What it is not: KVM, Firecracker's devices (the guest finds PCI in
place of MMIO; and for snapshots a port in place of the vsock, with channel="serial"), and all the parts of the API that the
controller does not use: these are refused."""

import json
import pkgutil
import sys

options = json.loads(pkgutil.get_data("options", "options.json"))
if options["is_jailer"]:
    import jailer
    jailer.main(sys.argv[1:])
else:
    import firecracker
    from spec import Spec
    firecracker.main(sys.argv[1:], Spec(pkgutil.get_data("options", "firecracker.yaml")), options["faults"])
