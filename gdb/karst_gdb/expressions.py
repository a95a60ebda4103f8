"""Addresses as GDB expressions."""

from __future__ import annotations

import re

import gdb

ADDRESS_MASK = (1 << 64) - 1
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")
_REFERENCES = (gdb.TYPE_CODE_REF, getattr(gdb, "TYPE_CODE_RVALUE_REF", gdb.TYPE_CODE_REF))
_PLACES = (gdb.TYPE_CODE_ARRAY, gdb.TYPE_CODE_FUNC)
_INTEGERS = (gdb.TYPE_CODE_PTR, gdb.TYPE_CODE_INT, gdb.TYPE_CODE_ENUM, gdb.TYPE_CODE_CHAR)
_AGGREGATES = (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def address_of_value(value: gdb.Value, named: str) -> int:
    """The address that a value means; what has none fails with one line that calls it by `named`."""
    code = value.type.strip_typedefs().code
    if code in _REFERENCES:
        value = value.referenced_value()
        code = value.type.strip_typedefs().code
    if code in _PLACES and value.address is not None:
        return int(value.address) & ADDRESS_MASK
    if code in _INTEGERS:
        return int(value) & ADDRESS_MASK
    if code == gdb.TYPE_CODE_VOID:
        raise gdb.GdbError(f"{named} has no value")
    if code in _AGGREGATES:
        raise gdb.GdbError(f"{named} is a {value.type}, not an address; give a pointer, or &({named})")
    raise gdb.GdbError(f"{named} is a {value.type}, not an address")


def evaluate_address(text: str) -> int:
    """The address that an expression of the selected frame's language gives."""
    text = text.strip()
    if _NUMBER.fullmatch(text):  # in any language, with or without a frame
        number = int(text, 16 if text[:2].lower() == "0x" else 10)
        if number > ADDRESS_MASK:
            raise gdb.GdbError(f"{text} is no address: it has more than 64 bits")
        return number
    try:
        return address_of_value(gdb.parse_and_eval(text), text)
    except gdb.GdbError:
        raise
    except (gdb.error, ValueError, OverflowError) as error:
        raise gdb.GdbError(f"{text}: {one_line(error)}") from None
