"""
CPython in userspace programs, and in tasks of kernel programs: stacks and objects, read without debug information.

The engine answers, as for the helpers of heaps.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from drgn import IntegerLike

from karst_drgn.heap import Heap, heap_json


class PythonFrame(NamedTuple):
    """A Python frame."""

    function: str
    file: str
    line: Optional[int]
    address: int
    from_c: bool
    """C code called it: it begins a new C frame of the interpreter."""


class PythonThread(NamedTuple):
    """A thread that the interpreter knows."""

    tid: Optional[int]
    name: Optional[str]
    interpreter: int
    holds_gil: bool
    frames: list[PythonFrame]
    """The newest first."""


class PythonType(NamedTuple):
    """The objects of one type; sizes are bytes."""

    name: str
    objects: int
    bytes: int
    buffers: int
    """What is theirs alone besides: a list's items, a dict's table."""
    tracked: int
    """In the collector's lists."""


class PythonReferrer(NamedTuple):
    """Something that refers to an object."""

    address: int
    type: Optional[str]
    """``None``: a frame."""
    text: str
    """How: ``item 12 of list, 300 items``, ``local x of f, line 7``."""


def python_threads(heap: Heap) -> list[PythonThread]:
    """
    The Python stacks of all threads.

    :param heap: A program, or ``struct task_struct *``
    """
    return [PythonThread(thread["tid"], thread["name"], thread["interpreter"], thread["holds_gil"],
                         [PythonFrame(frame["function"], frame["file"], frame["line"], int(frame["frame"], 16),
                                      frame["from_c"]) for frame in thread["frames"]])
            for runtime in heap_json(heap, "py-stack", "--all")["runtimes"] for thread in runtime["threads"]]


def python_types(heap: Heap) -> list[PythonType]:
    """
    Objects by type, those with the most bytes first.

    :param heap: A program, or ``struct task_struct *``
    """
    return [PythonType(row["type"], row["objects"], row["bytes"], row["buffer_bytes"], row["tracked"])
            for runtime in heap_json(heap, "py-objects", "--all")["runtimes"] for row in runtime["types"]]


def python_referrers(heap: Heap, address: IntegerLike) -> list[PythonReferrer]:
    """
    Who refers to the object at an address: containers, instances, local variables of frames.

    :param heap: A program, or ``struct task_struct *``
    :param address: Of the object.
    """
    return [PythonReferrer(int(row["address"], 16), row["type"], row["text"])
            for runtime in heap_json(heap, "py-objects", "--where", hex(address), "--all")["runtimes"]
            for row in runtime["referrers"]]
