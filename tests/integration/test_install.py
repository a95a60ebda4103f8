"""make install, make uninstall, and the program of docs/c-api.md against what was installed."""
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("KARST_BUILD", ROOT / "build"))


def run(*words: object, **options: object) -> str:
    return subprocess.run([str(word) for word in words], check=True, stdout=subprocess.PIPE, text=True,
                          **options).stdout  # type: ignore[call-overload]


def make(*words: object) -> None:
    run("make", "-s", f"BUILD={BUILD}", *words, cwd=ROOT)


def small_core(folder: Path) -> Path:
    make(BUILD / "fuzz/seeds")
    run(BUILD / "fuzz/seeds", cwd=folder)
    return folder / "single.core"


def test_installed_parts_work_together_and_go_again(tmp_path: Path) -> None:
    prefix, core = tmp_path / "installed", small_core(tmp_path)
    make("install", f"PREFIX={prefix}")
    told = json.loads(run(prefix / "bin/karst", "-c", core, "summary", "--json"))["total"]

    page = (ROOT / "docs/c-api.md").read_text(encoding="utf-8")
    program = re.search(r"```c\n(.*?)```", page, re.S)
    assert program
    (tmp_path / "totals.c").write_text(program[1], encoding="utf-8")
    run("cc", "-Wall", "-Wextra", "-Werror", f"-I{prefix}/include", tmp_path / "totals.c", f"-L{prefix}/lib",
        f"-Wl,-rpath,{prefix}/lib", "-lkarst", "-o", tmp_path / "totals")
    lines = run(tmp_path / "totals", core).splitlines()
    live = lines[0].split()
    assert live[0] == "live" and [int(live[1]), int(live[3])] == [told["live"]["blocks"], told["live"]["bytes"]]
    assert json.loads(lines[-1])["total"] == told

    in_gdb = run("gdb", "-nx", "-q", "-batch", "-ex", f"source {prefix}/share/karst/gdb/karst.py",
                 "-ex", f"core-file {core}", "-ex", "karst summary --json")
    assert f'"system_bytes":{told["system_bytes"]}' in in_gdb

    if shutil.which("drgn"):
        in_drgn = run("drgn", "-q", "-c", core, prefix / "share/karst/drgn/karst.py", "summary", "--json")
        assert json.loads(in_drgn)["total"] == told

    make("uninstall", f"PREFIX={prefix}")
    assert [path for path in prefix.rglob("*") if path.is_file()] == []


def test_a_package_is_laid_out_below_destdir(tmp_path: Path) -> None:
    make("install", "PREFIX=/usr", f"DESTDIR={tmp_path}")
    assert os.access(tmp_path / "usr/bin/karst", os.X_OK)
    start = tmp_path / "etc/gdb/gdbinit.d/karst.gdb"
    assert start.read_text(encoding="utf-8") == "source /usr/share/karst/gdb/karst.py\n"
    assert (tmp_path / "usr/share/karst/gdb/karst.py").exists()
    information = list((tmp_path / "usr/lib/python3/dist-packages").glob("karst_drgn-*.dist-info"))
    assert len(information) == 1
    found = importlib.metadata.Distribution.at(information[0])
    assert [(one.group, one.name, one.value) for one in found.entry_points] == \
        [("drgn.plugins", "karst", "karst_drgn.plugin")]
    assert os.readlink(tmp_path / "usr/lib/python3/dist-packages/karst_drgn") == "/usr/share/karst/drgn/karst_drgn"
    make("uninstall", "PREFIX=/usr", f"DESTDIR={tmp_path}")
    assert [path for path in tmp_path.rglob("*") if not path.is_dir() or path.is_symlink()] == []
