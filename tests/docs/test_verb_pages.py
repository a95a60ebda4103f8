"""The pages in docs/verbs/ are what docs/generate.py writes from the engine now, addresses and sizes aside."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from karst_command import BUILD, ROOT
from karst_programs import kernel_cores_land_here

sys.path.append(str(ROOT / "docs"))
from generate import PYTHON_PAGES, normalised  # noqa: E402
from preload_pages import PAGES as PRELOAD_PAGES  # noqa: E402

PAGES = ROOT / "docs" / "verbs"
@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verbs")
    subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--build", BUILD, "--folder", folder,
                    "--pages", folder.parent / "pages"], check=True,
                   timeout=600)
    return folder


@pytest.mark.parametrize("name", [*PYTHON_PAGES, *PRELOAD_PAGES])
def test_sessions_are_not_stale(written: Path, name: str) -> None:
    if os.confstr("CS_GNU_LIBC_VERSION") != "glibc 2.36":
        pytest.skip("the pages show glibc 2.36 and Python 3.11")
    if name == "trap.md" and not kernel_cores_land_here():
        pytest.skip("the page shows a core, which the kernel writes elsewhere")
    here = (ROOT / "docs" / name).read_text(encoding="utf-8")
    there = (written.parent / "pages" / name).read_text(encoding="utf-8")
    assert len(re.findall("<!-- (session|shell):", here)) > 1
    difference = difflib.unified_diff(normalised(here), normalised(there), "docs", "now", lineterm="")
    assert not (text := "\n".join(difference)), f"docs/{name} is stale, run `make docs`:\n{text}"


def test_same_pages(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == sorted(path.name for path in PAGES.iterdir()), \
        "run `make docs`"


@pytest.mark.parametrize("name", sorted(path.name for path in PAGES.iterdir()))
def test_page_is_not_stale(written: Path, name: str) -> None:
    libc = os.confstr("CS_GNU_LIBC_VERSION")
    if libc != "glibc 2.36":
        pytest.skip(f"the pages show glibc 2.36, this is {libc}")
    if name == "rss.md" and tuple(map(int, os.uname().release.split(".")[:2])) < (6, 16):
        pytest.skip("the page shows a kernel that has statm exact: Linux 6.16 and newer")
    here, there = ((folder / name).read_text(encoding="utf-8") for folder in (PAGES, written))
    difference = difflib.unified_diff(normalised(here), normalised(there), "docs/verbs", "now", lineterm="")
    assert not (text := "\n".join(difference)), f"docs/verbs/{name} is stale, run `make docs`:\n{text}"


def test_documents_show_what_the_demo_shows() -> None:
    """Every mark in README.md and the tour names an answer of the demo."""
    demo = (ROOT / "docs" / "demo" / "demo.py").read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "docs" / "tour.md"):
        marks = re.findall(r"<!-- demo: ([^>]*) -->", path.read_text(encoding="utf-8"))
        assert marks, f"{path} shows nothing"
        for name in (name.strip() for mark in marks for name in mark.split(",")):
            words = name.split()
            assert words[-1] in demo, f"{path}: the demo shows no {name}"


def test_every_page_is_linked() -> None:
    """From README.md, by way of other pages."""
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        path = waiting.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        if path.suffix == ".md":
            waiting += [(path.parent / link).resolve() for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8"))]
    shown = (path for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".png", ".svg"))
    assert not [path for path in shown if path not in seen]


def test_links_lead_somewhere() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{path.relative_to(ROOT)} links to {link}, which is not there"
