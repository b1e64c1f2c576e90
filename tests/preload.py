"""What forked processes find imported: the process that they are forked from imports this (forked.py)."""

import atexit
import gc
import importlib
import sys

# shared.settings is read when worker.main is imported, so that one is left to the forked process itself
MODULES = (
    "api.listener.server", "api.server", "infra.cli", "infra.prepare", "tests.fuzz.cases", "tests.fuzz.path",
    "worker.consumer", "worker.maintenance.sweeper", "worker.tasks",
)  # fmt: skip

gc.disable()  # it would look at what stays again and again
for _name in MODULES:
    importlib.import_module(_name)
# imported for what it imports: itself it sees when it is imported whether it prints at a terminal
for _name in [name for name in sys.modules if name.startswith("infra.cli")]:
    del sys.modules[_name]
del vars(sys.modules["infra"])["cli"]
gc.freeze()
atexit.register(gc.unfreeze)  # libraries complain of what is left at the interpreter's end
gc.enable()
