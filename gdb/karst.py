"""karst for GDB: `source` this file, then `help karst`.

It adds the commands `karst VERB`, the settings `set karst ...` and the functions `$_karst_size(p)`,
`$_karst_usable(p)`, `$_karst_state(p)`, `$_karst_start(p)` and `$_karst_arena(p)`.
"""

import os
import sys

import gdb


def _load() -> None:
    if sys.version_info < (3, 9):
        raise gdb.GdbError("karst needs a GDB with Python 3.9 or newer; this one has %d.%d" % sys.version_info[:2])
    here = os.path.dirname(os.path.realpath(__file__))
    # At the end: nothing of ours may stand before a module of somebody else.
    for folder in (here, os.path.join(os.path.dirname(here), "helper", "python"),
                   os.path.join(os.path.dirname(here), "python")):
        if os.path.isdir(folder) and folder not in sys.path:
            sys.path.append(folder)
    import karst_gdb.load
    karst_gdb.load.register()


try:
    _load()
except gdb.GdbError as error:  # GDB would show a traceback of an error in a script
    gdb.write(f"{error}\n", gdb.STDERR)
