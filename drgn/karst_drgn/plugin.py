"""
The drgn plugin: ``%karst VERB ...`` where drgn has commands (0.1.0 and newer).

Loaded by the entry point ``drgn.plugins`` that ``make install`` makes, or by ``DRGN_PLUGINS=karst=karst_drgn.plugin``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from drgn import Program

try:
    from drgn.commands import custom_command, parse_shell_command
except ImportError:  # drgn before 0.1.0: the helpers, and the script karst.py
    pass
else:
    @custom_command(
        description="explore the holes of a heap",
        usage="**karst** [**--pid** *PID*] *VERB* [*ARGUMENTS*]",
        long_description="""
        Walk the heap of this program, or of a task of this kernel: what is live, free or cached, where the holes are and
        what pins them, what is corrupt. ``%karst --help`` lists the verbs, ``%karst VERB --help`` tells more of one.
        """,
        parse=parse_shell_command,
    )
    def _cmd_karst(prog: Program, name: str, args: Sequence[str], **_more: Any) -> Optional[int]:
        from karst_drgn import commands
        return commands.run(lambda: prog, args) or None  # a status of 0 is nothing to show
