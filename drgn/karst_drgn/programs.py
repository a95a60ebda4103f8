"""What a drgn Program is: a core or process that the engine can open by itself, or a kernel."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from typing import Optional

import drgn
from drgn import Program, ProgramFlags
from karst_engine import ErrorCode, KarstError

_CORE_KEY = "karst core"
_ET_CORE, _PT_LOAD, _PT_NOTE, _PN_XNUM = 4, 1, 4, 0xFFFF
_NOTES_MAX = 64 << 20
# Where a kernel's memory is; [vsyscall], of which processes' cores may have a page, lies behind.
_KERNEL_START, _VSYSCALL = 1 << 63, 0xFFFFFFFFFF600000
_KDUMP_MAGIC = b"KDUMP   "
_PROC_MEM = re.compile(r"/proc/(\d+)/mem")


def is_kernel(prog: Program) -> bool:
    return bool(prog.flags & ProgramFlags.IS_LINUX_KERNEL)


def is_live(prog: Program) -> bool:
    return bool(prog.flags & ProgramFlags.IS_LIVE)


def need_kernel(prog: Program) -> None:
    """Fails with one line unless prog is a kernel whose types are known."""
    if not is_kernel(prog):
        _refuse_bare_vmcore(prog)
        raise KarstError(ErrorCode.USAGE, "this is a userspace program: only a kernel (drgn -c VMCORE, drgn -k) can"
                                          " tell of tasks and their counters")
    try:
        prog.type("struct task_struct")
    except LookupError:
        raise KarstError(ErrorCode.NOT_FOUND, "the kernel's debug information is not loaded: give its vmlinux by"
                                              " drgn -s VMLINUX") from None
    if prog.platform is None or prog.platform.arch != drgn.Architecture.X86_64:
        raise KarstError(ErrorCode.UNSUPPORTED, "only kernels on x86-64 are known")


def need_userspace(prog: Program) -> None:
    if is_kernel(prog):
        raise KarstError(ErrorCode.USAGE, "this is a kernel: say which task's heap, by --pid PID")
    _refuse_bare_vmcore(prog)


def _segments(path: str) -> list[tuple[int, ...]]:
    """The program headers of an ELF core: kind, flags, offset, virtual and physical address, bytes in the file, bytes in
    memory, alignment."""
    found = []
    with open(path, "rb") as file:
        header = file.read(64)
        if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":
            return []
        offset, = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        if count == _PN_XNUM:  # the count is in the first section's sh_info
            file.seek(struct.unpack_from("<Q", header, 40)[0] + 44)
            count, = struct.unpack("<I", file.read(4))
        for index in range(count):
            file.seek(offset + index * size)
            data = file.read(56)
            if len(data) < 56:
                break
            found.append(struct.unpack("<IIQQQQQQ", data))
    return found


def load_segments(path: str) -> list[tuple[int, int, int, int]]:
    """Of an ELF core's memory: virtual and physical address, bytes in the file, bytes in memory."""
    return [(one[3], one[4], one[5], one[6]) for one in _segments(path) if one[0] == _PT_LOAD]


def notes(path: str, name: bytes, kind: int) -> list[bytes]:
    """What an ELF core's notes of one name and kind hold, in order."""
    found = []
    for segment in _segments(path):
        if segment[0] != _PT_NOTE or segment[5] > _NOTES_MAX:
            continue
        with open(path, "rb") as file:
            file.seek(segment[2])
            data = file.read(segment[5])
        place = 0
        while place + 12 <= len(data):
            name_size, size, note_kind = struct.unpack_from("<III", data, place)
            begin = place + 12 + (name_size + 3 & -4)
            if note_kind == kind and data[place + 12:place + 12 + name_size].rstrip(b"\0") == name:
                found.append(data[begin:begin + size])
            place = begin + (size + 3 & -4)
    return found


def _refuse_bare_vmcore(prog: Program) -> None:
    """drgn takes a kernel's dump for a process's core where it can't tell."""
    path = None if is_live(prog) else core_path(prog)
    if path is not None and any(_KERNEL_START <= virtual < _VSYSCALL
                                for virtual, *_ in load_segments(path)):
        raise KarstError(ErrorCode.FORMAT, "this is a kernel's memory with no VMCOREINFO note, without which its pages"
                                           " can't be found: take the dump by kdump, or in QEMU with -device vmcoreinfo")


def set_core(prog: Program, path: str) -> None:
    """Says which file prog was opened from; for drgn before 0.0.30, when several are open."""
    prog.cache[_CORE_KEY] = os.path.abspath(path)


def _is_dump(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            header = file.read(18)
    except OSError:
        return False
    if header.startswith(_KDUMP_MAGIC):
        return True
    if len(header) < 18 or header[:4] != b"\x7fELF":
        return False
    return struct.unpack("<H" if header[5] == 1 else ">H", header[16:18])[0] == _ET_CORE


def _open_files() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue


def core_path(prog: Program) -> Optional[str]:
    """The file that prog reads; None: it has none, or drgn does not tell."""
    path = prog.cache.get(_CORE_KEY) or getattr(prog, "core_dump_path", None)  # the attribute: from drgn 0.0.30 on
    if path is not None:
        return os.fsdecode(path)
    found = sorted({path for path in _open_files() if _is_dump(path)})
    if len(found) > 1:
        raise KarstError(ErrorCode.USAGE, "several cores are open, and this drgn does not say which one the program"
                                          " is of: say so by karst_drgn.set_core(prog, PATH)")
    if found:
        prog.cache[_CORE_KEY] = found[0]
    return found[0] if found else None


def process_id(prog: Program) -> int:
    """The process that prog reads as it runs."""
    try:
        return int(prog.main_thread().tid)
    except (ValueError, LookupError, drgn.FaultError):
        pass
    found = {int(match[1]) for path in _open_files() if (match := _PROC_MEM.fullmatch(path))}
    if len(found) == 1:
        return found.pop()
    raise KarstError(ErrorCode.NOT_FOUND, "drgn does not say which process this program is of")


def vmcoreinfo(prog: Program) -> dict[str, str]:
    """The lines of the kernel's VMCOREINFO note, "NUMBER(sme_mask)" and so on."""
    try:
        text = prog["VMCOREINFO"].string_()
    except (LookupError, drgn.FaultError):  # drgn 0.0.22 keeps it to itself: the kernel's own copy
        try:
            text = prog.read(int(prog["vmcoreinfo_data"]), int(prog["vmcoreinfo_size"]))
        except (LookupError, drgn.FaultError) as error:
            raise KarstError(ErrorCode.FORMAT, "the kernel's VMCOREINFO can't be read, without which its page tables"
                                               f" can't be told: {error}") from None
    return dict(line.split("=", 1) for line in text.decode("utf-8", "replace").splitlines() if "=" in line)
