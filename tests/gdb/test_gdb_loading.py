"""The plugin is loaded: without an engine, with another one, installed, twice, beside other plugins."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from gdb_runner import PLUGIN, SECONDS, gdb, gdb_plain
from karst_command import BUILD, ROOT, TESTS

DEBUGGED = TESTS / "debugged"


def plugin_without_engine(directory: Path) -> Path:
    """The plugin in a place of its own, where no build is."""
    for folder in ("gdb", "helper/python"):
        shutil.copytree(ROOT / folder, directory / "there" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return directory / "there" / "gdb" / "karst.py"


def test_engine_missing(core: Path, directory: Path) -> None:
    plugin = plugin_without_engine(directory)
    text = gdb_plain(["-ex", f"source {plugin}"], directory)
    assert len(text.strip().splitlines()) == 1 and "engine" in text and "set karst engine-path" in text
    commands = ["karst summary", f"set karst engine-path {BUILD / 'libkarst.so'}", "karst summary --json",
                "show karst engine-path"]
    answers = gdb([DEBUGGED, core], commands, directory, plugin=plugin)
    assert "set karst engine-path" in answers.of("karst summary").one_line()
    assert answers.of("karst summary --json").json()["allocators"]
    assert str(BUILD) in answers.of("show karst engine-path").good()


def test_engine_of_another_version(directory: Path) -> None:
    source, library = directory / "other.c", directory / "other.so"
    source.write_text("unsigned karst_api_version(void) { return 99; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    plugin = plugin_without_engine(directory)
    answers = gdb([], [f"set karst engine-path {library}", "set karst engine-path /nothing/there", "karst"], directory,
                  plugin=plugin)
    assert "99" in answers.said[0].one_line()
    assert "/nothing/there" in answers.said[1].one_line()
    assert "/nothing/there" in answers.said[2].one_line()


def test_installed(core: Path, directory: Path) -> None:
    prefix = directory / "prefix"
    subprocess.run(["make", "-s", "install", f"PREFIX={prefix}", f"BUILD={BUILD}"], cwd=ROOT, check=True,
                   stdout=subprocess.DEVNULL, timeout=SECONDS)
    answers = gdb([DEBUGGED, core], ["karst summary --json", "show karst engine-path"], directory,
                  plugin=prefix / "share" / "karst" / "gdb" / "karst.py")
    assert answers.said[0].json()["allocators"]
    assert str(prefix / "lib" / "libkarst.so") in answers.said[1].good()


def test_sourced_twice(core: Path, directory: Path) -> None:
    answers = gdb([DEBUGGED, core], [f"source {PLUGIN}", "karst summary --json"], directory)
    assert answers.said[0].good() == ""
    assert answers.said[1].json()["allocators"]


def test_existing_command_stays(directory: Path) -> None:
    script = directory / "mine.gdb"
    script.write_text("define karst\n  echo mine\\n\nend\n")
    text = gdb_plain(["-x", str(script), "-ex", f"source {PLUGIN}", "-ex", "karst"], directory)
    assert "not loaded" in text and text.endswith("mine\n")


@pytest.mark.skipif("KARST_GEF" not in os.environ, reason="KARST_GEF does not name a gef.py")
def test_beside_gef(core: Path, directory: Path) -> None:
    commands = ["karst summary --json", "heap arenas", "help karst", "help heap"]
    answers = gdb(["-ex", f"source {os.environ['KARST_GEF']}", DEBUGGED, core], commands, directory)
    alone = gdb([DEBUGGED, core], ["karst summary --json"], directory)
    assert answers.of("karst summary --json").good() == alone.said[0].good()
    for command in commands[1:]:
        answers.of(command).good()
