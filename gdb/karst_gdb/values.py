"""Typed values: the type of an object by its vtable, and objects by GDB's printers."""

from __future__ import annotations

import re

import gdb

from karst_gdb.expressions import ADDRESS_MASK, one_line

_VTABLE = re.compile(r"vtable for (.+) \+ 16\b")
# In the Itanium C++ ABI an object's first word points behind the offset to top and the type's information.
_VTABLE_ADDRESS_POINT = 16


def type_named(name: str) -> gdb.Type:
    """A type as the program calls it, "struct" and "union" left out or not; fails with one line."""
    for candidate in (name, f"struct {name}", f"union {name}"):
        try:
            return gdb.lookup_type(candidate)
        except gdb.error:
            continue
    try:  # what is no single name: "char *", "node<int> [4]"
        return gdb.parse_and_eval(f"({name} *) 0").type.target()
    except (gdb.error, RuntimeError) as error:
        raise gdb.GdbError(f"no type {name}: {one_line(error)}") from None


def vtable_of(name: str) -> int | None:
    """What the first word of an object of class `name` holds; None: there is no vtable of that name."""
    for candidate in dict.fromkeys((name, _real_name(name))):
        try:
            return (int(gdb.parse_and_eval(f"(unsigned long) &'vtable for {candidate}'")) + _VTABLE_ADDRESS_POINT) \
                & ADDRESS_MASK
        except (gdb.error, RuntimeError):
            continue
    return None


def _real_name(name: str) -> str:
    try:
        return str(gdb.lookup_type(name).strip_typedefs().unqualified())
    except gdb.error:
        return name


def class_by_vtable(address: int) -> str | None:
    """The name of the C++ class whose vtable the first word at address points to."""
    try:
        word = int.from_bytes(bytes(gdb.selected_inferior().read_memory(address, 8)), "little")
        found = _VTABLE.match(gdb.execute(f"info symbol {word:#x}", to_string=True)) if word else None
    except gdb.error:
        return None
    return found.group(1) if found else None


def object_text(address: int, type_name: str | None) -> str:
    """What is at address as GDB's printers show it, "" if its type is neither given nor told by a vtable.
    `$__` is set to it, as by `x`."""
    name = type_name or class_by_vtable(address)
    if name is None:
        return ""
    try:
        type_ = type_named(name)
    except gdb.GdbError:
        if type_name:
            raise
        return f"{name} (by its vtable; no debug information for it)"
    try:
        value = gdb.Value(address).cast(type_.pointer()).dereference()
        text = value.format_string()
    except (gdb.error, RuntimeError) as error:
        return f"{name}: {one_line(error)}"
    gdb.set_convenience_variable("__", value)
    return f"{name}{'' if type_name else ' (by its vtable)'} = {text}"
