"""A kernel that has names for anonymous memory (Debian's have none): what the preload library makes bears its own, and the
marker is found by it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import BUSYBOX, KERNELS, QEMU
from guest import Truth, booted, make_initramfs
from karst_command import BUILD, TESTS
from karst_ledger import read_ledger

SUITE = "noble"
OWN = 50  # blocks of libc and of the program, beside those it keeps a ledger of
AFTER = """
mkdir /marked
/guest/karst run --mark --recorder=256K -- /guest/ledger --threads=2 --slots=300 /marked >/truth/marked.out 2>&1 &
tries=0
until $b grep -q ready /truth/marked.out || [ $tries = 600 ]; do $b usleep 100000; tries=$((tries + 1)); done
show marked/out /truth/marked.out
marked=$($b sed -n 's/^ready //p' /truth/marked.out)
show marked/maps /proc/$marked/maps
show marked/ledger /marked/ledger
begin marked/info
/guest/karst -p $marked info --json
begin marked/sites
/guest/karst -p $marked sites --all --json
"""


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    folder = tmp_path_factory.mktemp("names")
    programs = [TESTS / "ledger", TESTS / "kernel" / "pages", BUILD / "karst", BUILD / "libkarst-preload.so"]
    make_initramfs(KERNELS / SUITE, BUSYBOX, programs, folder / "initramfs", {"stash/guest/after": AFTER.encode()})
    with booted(QEMU, KERNELS / SUITE, folder / "initramfs", folder) as guest:
        return guest.truth


def test_memory_of_the_library_has_its_name(truth: Truth) -> None:
    lines = re.findall(r"^(\w+)-(\w+) .*\[anon:karst\]$", truth.sections["marked/maps"], re.MULTILINE)
    named = [range(int(start, 16), int(end, 16)) for start, end in lines]
    marker = json.loads(truth.sections["marked/info"])["marker"]
    assert any(int(marker["address"], 16) == memory.start for memory in named)
    # The rings of two threads and of the first, the map's leaves.
    assert len([memory for memory in named if len(memory) >= 256 << 10]) >= 4, lines


def test_blocks_by_site(truth: Truth, directory: Path) -> None:
    told = json.loads(truth.sections["marked/sites"])
    truth.write_files("marked", directory)
    held = len(read_ledger(directory))
    assert held > 100 and held <= told["blocks"] <= held + OWN
    assert told["lost"] == 0 and not [site for site in told["sites"] if site["damaged"]]
