"""The selected thread's C stack with the Python frames where the interpreter runs them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gdb

from karst_gdb import engine

# Each call of it runs the Python frames up to the one that C code called (`from_c`).
_INTERPRETER = "_PyEval_EvalFrameDefault"
_MOST = 1_000_000  # C frames


def write(current: engine.Session, words: list[str]) -> None:
    """`karst py-stack --native`; words are options of the verb."""
    thread = gdb.selected_thread()
    if thread is None:
        raise gdb.GdbError("no thread is selected")
    tid = thread.ptid[1] or thread.ptid[2]
    runtimes = current.json(["py-stack", f"--thread={tid}", "--all", *words])["runtimes"]
    frames = [frame for runtime in runtimes for found in runtime["threads"] for frame in found["frames"]]
    for line in _lines(frames):
        gdb.write(line + "\n")


def _c_frames() -> Iterator[gdb.Frame]:
    frame: gdb.Frame | None = gdb.newest_frame()
    for _ in range(_MOST):
        if frame is None:
            return
        yield frame
        try:
            frame = frame.older()
        except gdb.error:  # GDB can't unwind further
            return


def _c_text(frame: gdb.Frame) -> str:
    name = frame.name() or f"{frame.pc():#x}"
    place = frame.find_sal()
    if place.symtab is not None:
        return f"{name} at {place.symtab.filename}:{place.line}"
    library = gdb.solib_name(frame.pc())
    return f"{name} from {library}" if library else name


def _python_text(frame: dict[str, Any]) -> str:
    line = "" if frame["line"] is None else f":{frame['line']}"
    return f"{frame['function']} at {frame['file']}{line}"


def _lines(frames: list[dict[str, Any]]) -> Iterator[str]:
    shown = 0

    def python(frame: dict[str, Any], number: int) -> str:
        lines = [f"  py #{number:<3} " + _python_text(frame)]
        for local in frame.get("locals", []):
            value = f" = {local['value']}" if local["value"] else ""
            lines.append(f"            {local['name']}: {local['type'] or 'unbound'}{value}")
        return "\n".join(lines)

    for number, frame in enumerate(_c_frames()):
        yield f"  C  #{number:<3} {_c_text(frame)}"
        if not (frame.name() or "").startswith(_INTERPRETER):
            continue
        while shown < len(frames):
            yield python(frames[shown], shown)
            shown += 1
            if frames[shown - 1]["from_c"]:
                break
    if shown < len(frames):
        yield "  Python frames whose C frames GDB does not see:"
    for place in range(shown, len(frames)):
        yield python(frames[place], place)
