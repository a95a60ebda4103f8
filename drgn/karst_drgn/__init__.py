"""
karst in drgn: the heaps of any program, and what only a kernel knows of a process's memory.

.. code-block:: python3

    from karst_drgn import for_each_heap_arena, heap_holes, karst, mm_rss

    karst(prog, "summary")                                      # as on the command line
    for arena in for_each_heap_arena(prog):                     # a core or a live process
        print(arena.name, arena.live.bytes, arena.free.bytes)
    print(heap_holes(find_task(prog, 4711), limit=3))           # a task in a vmcore
    print(mm_rss(find_task(prog, 4711).mm).drift)
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

if find_spec("karst_engine") is None:  # beside the source tree, or where `make install` puts it
    _here = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    for _folder in (os.path.join(os.path.dirname(_here), "helper", "python"),
                    os.path.join(os.path.dirname(_here), "python")):
        if os.path.isdir(_folder) and _folder not in sys.path:
            sys.path.append(_folder)

from karst_engine import KarstError

from karst_drgn.commands import karst
from karst_drgn.gcore import Written, write_core
from karst_drgn.heap import (HeapArena, HeapBlock, HeapFinding, HeapHole, HeapPin, HeapTotal, find_heap_block,
                             for_each_heap_arena, for_each_heap_block, heap_check, heap_chunk, heap_holes, heap_json,
                             heap_pins, heap_total, visit_heap_blocks)
from karst_drgn.programs import set_core
from karst_drgn.python import (PythonFrame, PythonReferrer, PythonThread, PythonType, python_referrers, python_threads,
                               python_types)
from karst_drgn.residency import Residency, task_residency
from karst_drgn.rss import (MmRss, RssCounter, RssSources, TaskRss, for_each_task_rss, mm_rss, rss_sources, task_rss)
from karst_drgn.tasks import Vma, task_of, task_vmas

__all__ = (
    "HeapArena", "HeapBlock", "HeapFinding", "HeapHole", "HeapPin", "HeapTotal", "KarstError", "MmRss", "PythonFrame",
    "PythonReferrer", "PythonThread", "PythonType", "Residency", "RssCounter", "RssSources", "TaskRss", "Vma",
    "Written", "find_heap_block", "for_each_heap_arena", "for_each_heap_block", "for_each_task_rss", "heap_check",
    "heap_chunk", "heap_holes", "heap_json", "heap_pins", "heap_total", "karst", "mm_rss", "python_referrers",
    "python_threads", "python_types", "rss_sources", "set_core", "task_of", "task_residency", "task_rss", "task_vmas",
    "visit_heap_blocks", "write_core",
)
