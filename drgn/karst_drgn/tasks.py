"""Tasks of a kernel program, and their mappings. Mirrors ``include/linux/sched.h``, ``mm_types.h``, ``maple_tree.h``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Optional

from drgn import FaultError, Object, Program, cast
from drgn.helpers.linux.fs import d_path
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.pid import find_task, for_each_task
from karst_engine import ErrorCode, KarstError

from karst_drgn import programs

_PF_KTHREAD = 0x00200000
_VMAS_MAX, _THREADS_MAX = 1 << 22, 1 << 22  # PID_MAX_LIMIT
_MAPLE_LEVELS_MAX = 32

VM_READ, VM_WRITE, VM_EXEC, VM_SHARED = 1, 2, 4, 8
VM_PFNMAP, VM_IO, VM_HUGETLB = 0x400, 0x4000, 0x400000


class Vma(NamedTuple):
    """One mapping of a task: ``[start, end)``."""

    start: int
    end: int
    flags: int
    offset: int
    """Where in the file it begins, in bytes."""
    inode: int
    name: Optional[str]
    """Path of the file, ``[heap]``, ``[stack]`` ...; ``None``: plain anonymous memory."""
    object: Object
    """``struct vm_area_struct *``"""

    @property
    def has_file(self) -> bool:
        return bool(self.object.vm_file)


def task_of(prog: Program, pid: int) -> Object:
    """
    The process with this number, as the first PID namespace counts.

    :return: ``struct task_struct *`` of its leader, or of another thread where the leader has ended. KarstError if
        there is none, or it has no memory.
    """
    programs.need_kernel(prog)
    task = find_task(prog, pid)
    if not task:
        raise KarstError(ErrorCode.NOT_FOUND, f"there is no task {pid}: it has ended, or never was")
    name = command(task)
    if int(task.flags) & _PF_KTHREAD:
        raise KarstError(ErrorCode.NOT_FOUND, f"{pid} ({name}) is a thread of the kernel: it has no memory of its own")
    if int(task.tgid) != pid:
        raise KarstError(ErrorCode.USAGE, f"{pid} is a thread of process {int(task.tgid)} ({name}): name the process")
    for thread in threads_of(task):
        if thread.mm:
            return thread
    raise KarstError(ErrorCode.NOT_FOUND, f"process {pid} ({name}) has ended (a zombie its parent has not waited for):"
                                          " its memory is gone")


def command(task: Object) -> str:
    """The name of a task, ``comm``."""
    return task.comm.string_().decode("utf-8", "replace")


def threads_of(task: Object) -> Iterator[Object]:
    """
    All threads of a task's process, the first one first.

    :param task: ``struct task_struct *``
    """
    found = list_for_each_entry("struct task_struct", task.signal.thread_head.address_of_(), "thread_node")
    for number, thread in enumerate(found):
        if number == _THREADS_MAX:
            raise _damaged("list of threads")
        yield thread


def for_each_process(prog: Program) -> Iterator[Object]:
    """``struct task_struct *`` of a live thread of each process that has memory of its own."""
    programs.need_kernel(prog)
    for task in for_each_task(prog):
        # The leader stands for the process; where it has ended, the first thread that has not.
        if int(task.pid) != int(task.tgid) or int(task.flags) & _PF_KTHREAD:
            continue
        for thread in threads_of(task):
            if thread.mm:
                yield thread
                break


# ---- mappings ----------------------------------------------------------------------------------------


def _has_member(obj: Object, name: str) -> bool:
    try:
        obj.member_(name)
    except LookupError:
        return False
    return True


def _damaged(what: str) -> KarstError:
    return KarstError(ErrorCode.FORMAT, f"the kernel's {what} is damaged, or was changing when the dump was taken")


def _maple_entries(prog: Program, tree: Object) -> Iterator[int]:
    """What a maple tree holds, by index. Since Linux kernel commit d4af56c5c7c6 ("mm: start tracking VMAs with maple
    tree") (in v6.1) an mm's mappings are in one."""
    constants = {name: int(prog.constant(name)) for name in ("maple_leaf_64", "maple_range_64", "maple_arange_64")}

    def walk(entry: int, least: int, most: int, depth: int) -> Iterator[int]:
        if depth > _MAPLE_LEVELS_MAX:
            raise _damaged("tree of mappings")
        kind = entry >> 3 & 15
        node = Object(prog, "struct maple_node", address=entry & ~0xFF)
        if kind == constants["maple_arange_64"]:
            ranges = node.ma64
        elif kind in (constants["maple_leaf_64"], constants["maple_range_64"]):
            ranges = node.mr64
        else:
            raise _damaged("tree of mappings")
        pivots, slots = ranges.pivot.value_(), ranges.slot.value_()
        for index, slot in enumerate(slots):
            # A pivot of 0 that is not the first, or no pivot: the node ends where its parent says.
            end = pivots[index] if index < len(pivots) and (pivots[index] or not index) else most
            end = min(end, most)
            if slot and kind == constants["maple_leaf_64"]:
                yield slot
            elif slot:
                yield from walk(slot, least, end, depth + 1)
            if end >= most:
                return
            least = end + 1

    root = tree.ma_root.value_()
    if root & 3 == 2 and root > 4096:
        yield from walk(root, 0, 2**64 - 1, 0)
    elif root:
        yield root


def _vma_objects(mm: Object) -> Iterator[Object]:
    prog = mm.prog_
    if _has_member(mm, "mm_mt"):
        for address in _maple_entries(prog, mm.mm_mt):
            if address & 3 == 0:
                yield Object(prog, "struct vm_area_struct *", value=address)
    else:
        vma = mm.mmap
        while vma:
            yield vma
            vma = vma.vm_next


def _special_name(mm: Object, vma: Object, start: int, end: int) -> Optional[str]:
    """The names that ``/proc/PID/maps`` has for mappings without a file (``fs/proc/task_mmu.c``)."""
    if start == int(mm.context.vdso):
        return "[vdso]"
    if start <= int(mm.brk) and end >= int(mm.start_brk):
        return "[heap]"
    if start <= int(mm.start_stack) <= end:
        return "[stack]"
    if vma.vm_ops and _has_member(vma.vm_ops, "name") and vma.vm_ops.name:
        private = vma.vm_private_data
        try:
            mapping = cast("struct vm_special_mapping *", private)
            text = mapping.name.string_().decode("ascii")
        except (FaultError, LookupError, UnicodeDecodeError):
            return None
        return text if text.startswith("[") and text.endswith("]") else None
    # Since Linux kernel commit 9a10064f5625 ("mm: add a field to store names for private anonymous memory") (in v5.17).
    if _has_member(vma, "anon_name") and vma.anon_name:
        return f"[anon:{vma.anon_name.name.string_().decode('utf-8', 'replace')}]"
    return None


def file_name(file: Object) -> str:
    """As ``d_path()`` in the kernel has it."""
    dentry = file.f_path.dentry
    if dentry.d_op and dentry.d_op.d_dname:  # files that are in no folder, as those of shared anonymous memory
        return f"/{dentry.d_name.name.string_().decode('utf-8', 'surrogateescape')} (deleted)"
    name = d_path(file.f_path).decode("utf-8", "surrogateescape")
    unhashed = not dentry.d_hash.pprev and dentry.d_parent != dentry
    return f"{name} (deleted)" if unhashed else name


def _vma(mm: Object, vma: Object) -> Vma:
    start, end = int(vma.vm_start), int(vma.vm_end)
    file = vma.vm_file
    if file:
        name: Optional[str] = file_name(file)
        inode = int(file.f_inode.i_ino)
    else:
        name, inode = _special_name(mm, vma, start, end), 0
    return Vma(start, end, int(vma.vm_flags), int(vma.vm_pgoff) * 4096 if file else 0, inode, name, vma)


def task_vmas(mm: Object) -> list[Vma]:
    """
    The mappings of an address space, in order of address.

    :param mm: ``struct mm_struct *``
    """
    found: list[Vma] = []
    try:
        for vma in _vma_objects(mm):
            one = _vma(mm, vma)
            if one.start >= one.end or (found and one.start < found[-1].end) or len(found) == _VMAS_MAX:
                raise _damaged("list of mappings")
            found.append(one)
    except FaultError as error:
        raise KarstError(ErrorCode.FORMAT, f"the task's mappings are not in the dump: {error}") from None
    return found
