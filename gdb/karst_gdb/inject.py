"""`karst inject` and `karst eject`: the preload library in a process that was started without it, and out again.

dlopen loads it, called at a safe point; then the words by which the loaded modules call the allocator (GOT
entries and pointers in data) are set to the library's functions. They are written past the protection of
their pages, which stays as it is. Ejecting sets them back, waits until no thread is in the library, and calls
dlclose."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass

import gdb
import karst_abi
import karst_engine
from karst_elf import Module
from karst_gdb import calling, completion, leftovers, markers, traps
from karst_gdb.expressions import one_line
from karst_gdb.live import Live
from karst_gdb.markers import LIBRARY, Marker
from karst_gdb.registers import selection_kept
from karst_gdb.run_command import STACKS_ALONE, Parser, library_path

_NAMES = ("malloc", "calloc", "realloc", "reallocarray", "free", "memalign", "posix_memalign", "aligned_alloc", "valloc",
          "pvalloc", "malloc_usable_size")
_OPERATORS = tuple(
    f"_Z{kind}{rest}" for kind, rests in (
        ("nw", ("m", "mRKSt9nothrow_t", "mSt11align_val_t", "mSt11align_val_tRKSt9nothrow_t")),
        ("na", ("m", "mRKSt9nothrow_t", "mSt11align_val_t", "mSt11align_val_tRKSt9nothrow_t")),
        ("dl", ("Pv", "PvRKSt9nothrow_t", "Pvm", "PvSt11align_val_t", "PvmSt11align_val_t",
                "PvSt11align_val_tRKSt9nothrow_t")),
        ("da", ("Pv", "PvRKSt9nothrow_t", "Pvm", "PvSt11align_val_t", "PvmSt11align_val_t",
                "PvSt11align_val_tRKSt9nothrow_t"))) for rest in rests)
# Where a thread is likely to come by soon.
_ENTRIES = ("malloc", "free", "calloc", "realloc", "_Znwm", "_ZdlPv", "_ZdlPvm")
_KINDS = frozenset((1, 6, 7))  # R_X86_64_64, R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT (x86-64 psABI)
_RTLD_NOW = 2
_AT_SECURE = "AT_SECURE"
_ROUNDS_MAX = 200


@dataclass
class _Names:
    """The allocator's functions as the program has them, and the library's."""

    originals: dict[str, set[int]]
    ours: dict[str, int]


def _library_module(live: Live, marker: Marker) -> Module:
    return next(module for module in live.modules
                if marker.control.library_start <= module.dynamic_address < marker.control.library_end)


def _names(live: Live, library: Module) -> _Names:
    originals: dict[str, set[int]] = {}
    ours: dict[str, int] = {}
    for name in _NAMES + _OPERATORS:
        own = library.definitions(name)
        others = {definition.address for module in live.modules if module is not library
                  for definition in module.definitions(name)}
        if own and others:
            ours[name], originals[name] = own[0].address, others
    return _Names(originals, ours)


def _patch(live: Live, library: Module) -> tuple[int, int]:
    """Has the modules call the library; returns how many words were set, and in how many modules."""
    names = _names(live, library)
    count, where = 0, set()
    for module in live.modules:
        if module is library or "linux-vdso" in module.path or os.path.basename(module.path).startswith("ld-"):
            continue
        own = live.mapping(module.dynamic_address)
        for slot in module.slots(frozenset(names.ours), _KINDS):
            value = int.from_bytes(live.read(slot.address, 8), "little")
            if value not in names.originals[slot.name] and not _is_lazy(live, value, own):
                continue
            live.write(slot.address, names.ours[slot.name].to_bytes(8, "little"))
            count += 1
            where.add(module.path)
    return count, len(where)


def _is_lazy(live: Live, value: int, own: object) -> bool:
    """A word that was not bound yet leads back into its own module's code."""
    mapping = live.mapping(value)
    return mapping is not None and bool(mapping.permissions & 4) and own is not None \
        and mapping.name == getattr(own, "name", None)


def _unpatch(live: Live, library: Module) -> int:
    names = _names(live, library)
    first = {name: next((definition.address for module in live.modules if module is not library
                         for definition in module.definitions(name)), 0) for name in names.ours}
    count = 0
    for module in live.modules:
        if module is library:
            continue
        for slot in module.slots(frozenset(names.ours), _KINDS):
            if int.from_bytes(live.read(slot.address, 8), "little") == names.ours[slot.name]:
                live.write(slot.address, first[slot.name].to_bytes(8, "little"))
                count += 1
    return count


# ---- what stands against it -------------------------------------------------------------------------


def _refuse(live: Live, path: str) -> None:
    if live.is_static:
        raise gdb.GdbError("a static program can't load a library; `karst trap add` works without, if it has symbols")
    if not live.is_here:
        raise gdb.GdbError(f"the process runs on another machine, where {path} may not be; start it with LD_PRELOAD")
    try:
        with open(f"/proc/{live.inferior.pid}/status") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    except OSError as error:
        raise gdb.GdbError(f"/proc/{live.inferior.pid}/status: {error.strerror}") from None
    if status.get("Seccomp", "0").strip() != "0":
        raise gdb.GdbError("the process has a seccomp filter, which may end it when it loads a library; `karst trap "
                           "add` works without")
    secure = [line for line in gdb.execute("info auxv", to_string=True).splitlines() if _AT_SECURE in line]
    if secure and secure[0].split()[-1] not in ("0", "0x0"):
        raise gdb.GdbError(f"the process is setuid or has capabilities: {LIBRARY} does nothing in such a one")
    if not os.path.exists(f"/proc/{live.inferior.pid}/root{path}"):
        raise gdb.GdbError(f"the process can't see {path}: it has another root or mounts")


def _refuse_non_stop() -> None:
    if gdb.parameter("non-stop"):
        raise gdb.GdbError("in non-stop mode threads run on while others are stopped: `set non-stop off`, then attach or run")


def _entries(live: Live) -> list[int]:
    return sorted({definition.address for name in _ENTRIES for definition in live.definitions(name)})


def _loader_function(live: Live, name: str) -> int:
    found = live.definitions(name)
    if not found:
        raise gdb.GdbError(f"the process has no {name}: its libc is older than 2.34 and it does not use libdl; start "
                           "it by `karst run`")
    return found[0].address


# ---- in ----------------------------------------------------------------------------------------------


def inject() -> str:
    live = Live()
    path = library_path()
    _refuse(live, path)
    leftovers.take_out_of_loader(live)
    marker = markers.find(live)
    taken_over = traps.armed_detours()
    if marker is None:
        traps.take_out_selected()  # the library has them from now on
        live = _load(Live(), path)
        marker = markers.find(live)
        if marker is None:
            raise gdb.GdbError(f"{path} was loaded, but left no marker; is it of this version?")
    library = _library_module(live, marker)
    count, where = (0, 0) if _is_from_start(live, library) else _patch(live, library)
    traps.meet(live)
    for number, text in taken_over.items():
        traps.add(text, number)
    if not count:
        return f"{LIBRARY} is in already"
    return f"{LIBRARY} is in: {count} words set in {where} module{'s' if where > 1 else ''}"


def _load(live: Live, path: str) -> Live:
    dlopen, dlerror = _loader_function(live, "dlopen"), _loader_function(live, "dlerror")
    selected = gdb.selected_thread()
    live = calling.reach_safe_point(Live(), _entries(live))
    if not calling.call(live, dlopen, path, _RTLD_NOW):
        reason = calling.call(live, dlerror, None)
        text = bytes(live.read(reason, 256)).split(b"\0")[0].decode("utf-8", "replace") if reason else "no reason told"
        raise gdb.GdbError(f"dlopen: {text}")
    if selected is not None and selected.is_valid():
        selected.switch()
    return Live()


def _check_stacks(mark: bool, recorder: int | None, stacks: int | None) -> None:
    marker = markers.find(Live())
    if stacks is not None and not mark and recorder is None and (marker is None or not marker.control.wanted):
        raise gdb.GdbError(STACKS_ALONE)


def set_parts(mark: bool, recorder: int | None, stacks: int | None) -> None:
    """Turns parts on, beside those that are on already."""
    live = Live()
    marker = markers.find(live)
    if marker is None:
        raise gdb.GdbError(f"{LIBRARY} is not in this process any more")
    control = marker.control
    wanted = control.wanted | (karst_abi.GATE_MARK if mark else 0) | (karst_abi.GATE_RECORD if recorder is not None else 0)
    marker.want(wanted, control.recorder_bytes if recorder is None else recorder,
                control.stack_depth if stacks is None else stacks)
    if stacks is not None and control.site_kind != karst_abi.SITE_STACK:
        _begin_stacks(live, control.begin_stacks)


def _begin_stacks(live: Live, function: int) -> None:
    """The library loads libgcc's unwinder if need be."""
    selected = gdb.selected_thread()
    live = calling.reach_safe_point(live, _entries(live))
    calling.call(live, function, None)
    if selected is not None and selected.is_valid():
        selected.switch()


# ---- out ---------------------------------------------------------------------------------------------


def eject() -> str:
    _refuse_non_stop()
    live = Live()
    marker = markers.find(live)
    if marker is None:
        raise gdb.GdbError(f"{LIBRARY} is not in this process")
    leftovers.take_out_of_loader(live)
    library = _library_module(live, marker)
    if _is_from_start(live, library):
        raise gdb.GdbError(f"{LIBRARY} was there from the start: the program's calls are bound to it for good; "
                           "`karst trap remove` has it do nothing")
    for place, _ in list(marker.traps().values()):
        marker.remove(place)
    marker.want(0, 0, 0)
    count = _unpatch(live, library)
    bounds = (marker.control.library_start, marker.control.library_end)
    live = _wait_outside(live, bounds)
    traps.leave_library()
    if _may_be_inside(live, bounds):
        return (f"{count} words set back; {LIBRARY} stays mapped, as GDB can't tell whether a thread will return into it "
                "(it does not know all of the program's files)")
    live = calling.reach_safe_point(live, _entries(live))
    _close(live, library)
    return f"{LIBRARY} is out: {count} words set back"


def _is_from_start(live: Live, library: Module) -> bool:
    """Whether the loader looks names up in the library before it does in the allocator."""
    return next(module for module in live.modules if module.definitions("malloc")) is library


def _wait_outside(live: Live, bounds: tuple[int, int]) -> Live:
    """Lets threads that are in the library run until they have left it. None can come in any more."""
    for _ in range(_ROUNDS_MAX):
        inside = _thread_inside(live, bounds)
        if inside is None:
            return live
        thread, back = inside
        thread.switch()
        point = gdb.Breakpoint(f"*{back:#x}", internal=True)
        point.silent, point.thread = True, thread.global_num
        try:
            live = calling.run_on(live)
        finally:
            if point.is_valid():
                point.delete()
    raise gdb.GdbError(f"threads don't leave {LIBRARY}; it stays, and is not called any more")


def _thread_inside(live: Live, bounds: tuple[int, int]) -> tuple[gdb.InferiorThread, int] | None:
    """A thread with a frame in the library, and where it gets back to the program."""
    with selection_kept():
        for thread in live.inferior.threads():
            thread.switch()
            pcs = list(calling.frames_pcs())
            inside = [index for index, pc in enumerate(pcs) if bounds[0] <= pc < bounds[1]]
            if inside and inside[-1] + 1 < len(pcs):
                return thread, pcs[inside[-1] + 1]
    return None


def _may_be_inside(live: Live, bounds: tuple[int, int]) -> bool:
    """Whether a thread has something like a return address into the library on its stack, where GDB does not know all
    the code on the way and so may have lost it."""
    with selection_kept():
        for thread in live.inferior.threads():
            thread.switch()
            if all(_is_known(live, pc) for pc in calling.frames_pcs()):
                continue
            sp = int(gdb.newest_frame().read_register("rsp")) & ~7
            stack = live.read(sp, max(live.stack_end(sp) - sp, 0))
            if any(bounds[0] <= word < bounds[1] for word in memoryview(stack[:len(stack) // 8 * 8]).cast("Q")):
                return True
    return False


def _is_known(live: Live, pc: int) -> bool:
    """Whether GDB has the file that code at pc is of."""
    if gdb.solib_name(pc) is not None:
        return True
    mapping = live.mapping(pc)
    program = gdb.current_progspace().filename
    return mapping is not None and mapping.name is not None and program is not None \
        and os.path.realpath(program) == os.path.realpath(mapping.name)


def _close(live: Live, library: Module) -> None:
    """dlopen of what is loaded gives its handle again; two dlclose are then to be called."""
    dlopen, dlclose = _loader_function(live, "dlopen"), _loader_function(live, "dlclose")
    handle = calling.call(live, dlopen, library.path, _RTLD_NOW)
    for _ in range(2):
        if handle:
            calling.call(live, dlclose, None, handle)
    if any(module.path == library.path for module in Live().modules):
        gdb.write(f"{library.path} stays mapped, though nothing calls it: the loader keeps it\n")


# ---- commands ---------------------------------------------------------------------------------------


_OPTIONS = ("--mark", "--recorder", "--stacks")


class Inject(gdb.Command):
    """Load karst's preload library into the process, for traps of all kinds, the recorder and marks.

Usage: karst inject [--mark] [--recorder[=SIZE]] [--stacks=DEPTH]

The process runs on to a place where it can load a library safely: the entry of an allocator's function, unless a
thread sleeps in the kernel outside of it. Modules that are loaded later call the allocator directly; inject
again then. `karst eject` undoes it."""

    def __init__(self) -> None:
        super().__init__("karst inject", gdb.COMMAND_RUNNING)

    def complete(self, text: str, word: str | None) -> object:
        return completion.among(_OPTIONS, completion.last_word(text), word)

    def invoke(self, argument: str, from_tty: bool) -> None:
        self.dont_repeat()
        parser = Parser("inject", _OPTIONS, "inject takes options only; the process is the one GDB is attached to")
        parser.add_argument("-m", "--mark", action="store_true")
        parser.add_argument("-r", "--recorder", nargs="?", const="1M")
        parser.add_argument("-s", "--stacks")
        try:
            options = parser.parse_args(shlex.split(argument))
        except ValueError as error:
            raise gdb.GdbError(f"karst inject: {one_line(error)}") from None
        try:
            recorder = karst_engine.read_ring_bytes(options.recorder) if options.recorder is not None else None
            stacks = karst_engine.read_stack_depth(options.stacks) if options.stacks is not None else None
        except karst_engine.KarstError as error:
            raise gdb.GdbError(one_line(error)) from None
        _refuse_non_stop()
        _check_stacks(options.mark, recorder, stacks)
        gdb.write(inject() + "\n")
        if options.mark or recorder is not None or stacks is not None:
            set_parts(options.mark, recorder, stacks)


class Eject(gdb.Command):
    """Take karst's preload library out of the process again, with all its traps.

Usage: karst eject"""

    def __init__(self) -> None:
        super().__init__("karst eject", gdb.COMMAND_RUNNING, gdb.COMPLETE_NONE)

    def invoke(self, argument: str, from_tty: bool) -> None:
        self.dont_repeat()
        if argument.strip():
            raise gdb.GdbError("karst eject takes no arguments")
        gdb.write(eject() + "\n")


def register() -> None:
    Inject()
    Eject()
