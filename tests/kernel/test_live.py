"""drgn inside a running guest, on its /proc/kcore: the same answers as the guest's own /proc, with nothing dumped."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BUSYBOX, KERNELS, QEMU, SUITES
from guest import Truth, booted, libraries_of, make_initramfs
from karst_command import BUILD, ROOT, TESTS, Block
from karst_drgn import DRGN
from karst_ledger import compare, read_ledger

SUITE = "trixie"
NAMES = ("ledger", "pages")
PACKAGES = Path("/usr/lib/python3/dist-packages")
PYTHON = Path("/usr/bin/python3").resolve()
LEFT_OUT = {"test", "idlelib", "lib2to3", "pydoc_data", "distutils", "ensurepip", "tkinter", "turtledemo", "unittest", "venv",
            "__pycache__", "email", "asyncio", "sqlite3", "xml", "xmlrpc", "wsgiref", "dbm", "curses"}

# What is asked in the guest, in one drgn: it takes as long to start as all the rest.
ASKED = """
import sys
sys.path.append("/guest/karst/drgn")
from karst_drgn import commands
pids = dict(line.split() for line in open("/truth/pids"))
for name in ("ledger", "pages"):
    for verb in ("rss", "residency --all"):
        print(f"=== live/{name}/{verb.split()[0]}")
        commands.run(lambda: prog, ["--pid", pids[name], *verb.split(), "--json"])
print("=== live/blocks", flush=True)
commands.run(lambda: prog, ["--pid", pids["ledger"], "blocks", "--all", "--json"])
print("=== live/note", flush=True)
commands.run(lambda: prog, ["--pid", pids["ledger"], "info", "--json"])
print("=== live/end", flush=True)
"""

AFTER = f"""
{{ echo "ledger $ledger"; echo "pages $pages"; }} >/truth/pids
PYTHONHOME=/usr PYTHONDONTWRITEBYTECODE=1 /guest/{PYTHON.name} -c 'import sys; sys.argv[0] = "drgn"
from drgn.internal.cli import main
main()' -q -k --no-default-symbols -s /vmlinux /guest/asked.py >/truth/asked 2>&1
$b cat /truth/asked
"""


def _tree(folder: Path, to: str) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.is_file() and path.suffix != ".pyc" and not LEFT_OUT & set(inside.parts):
            yield f"{to}/{inside}", path.read_bytes()


def _files() -> dict[str, bytes]:
    library = Path("/usr/lib") / PYTHON.name
    files = dict(_tree(library, f"stash{library}"))
    files.update(_tree(PACKAGES / "drgn", f"stash{PACKAGES}/drgn"))
    files.update(_tree(ROOT / "drgn", "stash/guest/karst/drgn"))
    files.update(_tree(ROOT / "helper" / "python", "stash/guest/karst/helper/python"))
    files["stash/guest/karst/build/libkarst.so"] = (BUILD / "libkarst.so").read_bytes()
    for path in PACKAGES.glob("_drgn*"):
        if path.is_file():
            files[f"stash{path}"] = path.read_bytes()
    files["stash/guest/asked.py"] = ASKED.encode()
    files["stash/guest/after"] = AFTER.encode()
    files["vmlinux"] = (KERNELS / SUITE / "vmlinux").read_bytes()
    return files


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    if SUITE not in SUITES or DRGN != "drgn" or sys.version_info[:2] != (3, 11):
        pytest.skip(f"for {SUITE}'s kernel and the system's drgn")
    folder = tmp_path_factory.mktemp("live")
    modules = [path for path in PACKAGES.glob("_drgn*.so")] + [BUILD / "libkarst.so", PYTHON]
    modules += [path for path in (Path("/usr/lib") / PYTHON.name / "lib-dynload").glob("*.so")
                if path.name.startswith(("_ctypes", "mmap", "_json", "_struct", "_posixsubprocess", "_lzma", "_bz2"))]
    make_initramfs(KERNELS / SUITE, BUSYBOX, [TESTS / "ledger", TESTS / "kernel" / "pages", PYTHON],
                   folder / "initramfs", _files(), [library for module in modules for library in libraries_of(module)])
    with booted(QEMU, KERNELS / SUITE, folder / "initramfs", folder, megabytes=2560, seconds=600) as guest:
        return guest.truth


def answer(truth: Truth, section: str) -> Any:
    return json.loads(truth.sections[f"live/{section}"])


@pytest.mark.parametrize("name", NAMES)
def test_counters(truth: Truth, name: str) -> None:
    told = answer(truth, f"{name}/rss")
    assert told["rss_bytes"] == truth.kilobytes(f"{name}/smaps_rollup", "Rss") * 1024
    assert told["cached_bytes"] == truth.stat_pages(name) * 4096


@pytest.mark.parametrize("name", NAMES)
def test_residency(truth: Truth, name: str) -> None:
    told = answer(truth, f"{name}/residency")
    sizes = re.findall(r"^Rss:\s+(\d+) kB", truth.sections[f"{name}/smaps"], re.MULTILINE)
    assert [row["rss_bytes"] for row in told["mappings"]] == [int(size) * 1024 for size in sizes]


def test_blocks(truth: Truth, directory: Path) -> None:
    truth.write_files("ledger", directory)
    rows = [json.loads(line) for line in truth.sections["live/blocks"].splitlines() if line.startswith("{")]
    blocks = [Block(int(row["address"], 16), row["size"], row["usable"], row["state"], row["allocator"], row.get("arena"),
                    row.get("bin")) for row in rows]
    comparison = compare(read_ledger(directory), blocks)
    assert not (comparison.missing or comparison.other_usable or comparison.extra), comparison


def test_it_is_told_that_it_runs(truth: Truth) -> None:
    """Nothing is stopped: what is told may be torn."""
    assert answer(truth, "note")["target"]["stopped"] is False
