"""The control block of libkarst-preload.so in a process: traps written into it while all threads are stopped."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import gdb
import karst_abi
from karst_abi import Control, Trap, TrapState

from karst_gdb.live import Live

LIBRARY = "libkarst-preload.so"
_SYMBOL = "karst_control"


class Marker:
    """The marker of a process; void as soon as the process runs."""

    def __init__(self, live: Live, address: int, control: Control) -> None:
        self._live, self.address, self.control = live, address, control

    def slots(self) -> Iterator[tuple[int, Trap]]:
        """Address and content of each slot."""
        first = self.address + self.control.traps_offset
        for index in range(min(self.control.trap_count, karst_abi.TRAPS)):
            place = first + index * self.control.trap_bytes
            yield place, Trap.from_buffer_copy(self._live.read(place, ctypes.sizeof(Trap)))

    def traps(self) -> dict[int, tuple[int, Trap]]:
        """Those that are set, by number."""
        return {trap.number: (place, trap) for place, trap in self.slots() if trap.state != TrapState.EMPTY}

    def add(self, trap: Trap) -> None:
        for place, old in self.slots():
            if old.state == TrapState.EMPTY:
                self._write(place, trap)
                return
        raise gdb.GdbError(f"the library has room for {karst_abi.TRAPS} traps: remove one")

    def set_state(self, place: int, state: TrapState) -> None:
        self._live.write(place + Trap.state.offset, int(state).to_bytes(4, "little"))
        self._tell()

    def set_fired(self, place: int, fired: int) -> None:
        self._live.write(place + Trap.fired.offset, fired.to_bytes(8, "little"))

    def want(self, parts: int, recorder_bytes: int, stack_depth: int) -> None:
        """Turns parts of the library on (GATE_RECORD, GATE_MARK)."""
        self._live.write(self.address + Control.recorder_bytes.offset, recorder_bytes.to_bytes(8, "little"))
        self._live.write(self.address + Control.stack_depth.offset, stack_depth.to_bytes(4, "little"))
        self._live.write(self.address + Control.wanted.offset, parts.to_bytes(4, "little"))
        self._tell()

    def remove(self, place: int) -> None:
        self._write(place, Trap())

    def _write(self, place: int, trap: Trap) -> None:
        self._live.write(place, bytes(trap))
        self._tell()

    def _tell(self) -> None:
        """The next call of any function takes the change in."""
        gates = self.address + self.control.gates_offset
        for index in range(min(self.control.gate_count, 64)):
            gate = self._live.read(gates + 4 * index, 4)
            self._live.write(gates + 4 * index, bytes([gate[0] | karst_abi.GATE_CHANGED]) + gate[1:])


def find(live: Live) -> Marker | None:
    """The marker of the selected process; None: the library is not there. Fails if it is of another version."""
    for module in live.modules:
        for definition in module.definitions(_SYMBOL, data=True):
            data = live.read(definition.address, ctypes.sizeof(Control))
            if len(data) < ctypes.sizeof(Control):
                continue
            control = Control.from_buffer_copy(data)
            if control.magic == 0:
                raise gdb.GdbError(f"{LIBRARY} has not begun in this process yet: let it run to main (tbreak main)")
            if control.magic != karst_abi.CONTROL_MAGIC or control.self != definition.address:
                continue
            if control.version != karst_abi.VERSION or control.trap_bytes < ctypes.sizeof(Trap):
                raise gdb.GdbError(f"{LIBRARY} in this process has version {control.version} of the interface, this "
                                   f"plugin knows {karst_abi.VERSION}")
            return Marker(live, definition.address, control)
    return None
