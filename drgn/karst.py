"""karst for drgn, one line: ``drgn -c CORE drgn/karst.py VERB ...``, ``drgn -p PID drgn/karst.py VERB ...``, or of a
kernel ``drgn -c VMCORE -s VMLINUX drgn/karst.py --pid PID VERB ...``; ``--help`` lists the verbs."""

import os
import sys


def _load():
    if sys.version_info < (3, 9):
        sys.exit("karst needs Python 3.9 or newer; this one is %d.%d" % sys.version_info[:2])
    here = os.path.dirname(os.path.realpath(__file__))
    # At the end: nothing of ours may stand before a module of somebody else.
    for folder in (here, os.path.join(os.path.dirname(here), "helper", "python"),
                   os.path.join(os.path.dirname(here), "python")):
        if os.path.isdir(folder) and folder not in sys.path:
            sys.path.append(folder)
    from karst_drgn import commands
    return commands


if __name__ == "__main__":
    sys.exit(_load().run(lambda: globals()["prog"], sys.argv[1:]))  # drgn gives its scripts the program
