"""What `karst check` has to say of tests/programs/damaged_pools.py."""

from __future__ import annotations

from pathlib import Path

from karst_python_objects import each_way
from karst_pythons import Python

# Kind of damage: codes that may be found, the one that has to be, and what the text says.
KINDS: dict[str, tuple[set[str], str, str]] = {
    "double-free": ({"double-free", "bad-count"}, "double-free", "freed twice"),
    "cycle": ({"double-free", "bad-count"}, "double-free", "freed twice"),
    "written-after-free": ({"bad-link"}, "bad-link", "leaves the blocks of its pool"),
    "not-cut": ({"bad-link"}, "bad-link", "leaves the blocks of its pool"),
    "into-the-middle": ({"bad-link"}, "bad-link", "into the middle of a block"),
    "ring": ({"bad-link", "bad-count"}, "bad-link", "not in the ring of its class"),
    "other-ring": ({"wrong-bin", "bad-link", "bad-count"}, "wrong-bin", "ring of another class"),
    "class": ({"bad-size", "bad-count", "bad-link", "wrong-bin"}, "bad-size", "no size class"),
    "count": ({"bad-count"}, "bad-count", "do not add up"),
    "arena": ({"bad-root", "bad-count", "bad-link"}, "bad-root", "another arena"),
    "offset": ({"bad-size", "bad-count"}, "bad-size", "where no block ends"),
}


# With the debug hooks on (PYTHONMALLOC=debug, -X dev).
DRESSED: dict[str, tuple[set[str], str, str]] = {
    "behind": ({"overflow"}, "overflow", "written beyond its end"),
    "before": ({"overflow"}, "overflow", "guard bytes before it"),
    "used-after-free": ({"write-after-free"}, "write-after-free", "after its free"),
}


def assert_damage_found(kind: str, python: Python, directory: Path) -> None:
    environment = {"PYTHONMALLOC": "debug"} if kind in DRESSED else {}
    with python.running("damaged_pools.py", directory, kind, environment=environment) as program:
        values = program.values()
        program.wait_state("S")  # "ready" is written before it sleeps
        for target in each_way(program):
            healthy, findings = target.check()
            allowed, code, text = {**KINDS, **DRESSED}[kind]
            assert not healthy and {finding.code for finding in findings} <= allowed, findings
            found = next(finding for finding in findings if finding.code == code and text in finding.text
                         and finding.address in (values["block"], values["place"], values["pool"]))
            assert found.severity == "corrupt"
            if target.options[0] == "-p":
                assert target.run("pools", "--pages").returncode == 0
            # The walk goes on, and the blocks beside it are told.
            block = target.json("block", hex(values["block"]))
            assert block["block"]["allocator"] == "pymalloc"


def assert_undamaged_healthy(python: Python, directory: Path) -> None:
    for environment in ({}, {"PYTHONMALLOC": "debug"}):
        with python.running("damaged_pools.py", directory, "healthy", environment=environment) as program:
            for target in each_way(program):
                assert target.check() == (True, [])
        for core in directory.glob("*core*"):
            core.unlink()
