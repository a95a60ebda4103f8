"""What is mistyped is told in one line that says what may have been meant: on the command line, in GDB and in drgn."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from gdb_runner import gdb
from karst_command import BUILD, TESTS, karst
from karst_drgn import DRGN, DrgnTarget
from karst_programs import started

# Of a verb with a target; the same in all three.
OF_VERBS = {
    "sumary": "no verb 'sumary'; did you mean summary?",
    "blocks --limt 3": "blocks has no option --limt; did you mean --limit?",
    "blocks --sort sze": "--sort takes no 'sze'; did you mean size?",
    "blocks --sort zzz": "--sort takes one of address, size, not 'zzz'",
    "blocks --state fre": "--state: no state 'fre'; did you mean free?",
    "blocks --bin tcahe": "no bin 'tcahe'; did you mean 'tcache'?",
    "blocks --arena mian": "no arena 'mian'; did you mean main?",
}

OF_TRAPS = {
    "mallox 100": "'mallox' is unknown; did you mean malloc?",
    "malloc,callox 100": "'callox' is unknown; did you mean calloc?",
    "malloc 100 cuont=1": "'cuont=' is unknown; did you mean count=?",
    "malloc 100 action=lgo": "'lgo' is unknown; did you mean log?",
    "double-fre": "'double-fre' is unknown; did you mean double-free?",
    "grwoth": "'grwoth' is unknown; did you mean growth?",
    "oprators": "'oprators' is unknown; did you mean operators?",
    "zzz": "'zzz' is neither a function, a size, growth, double-free, foreign, interior, overflow nor KEY=VALUE",
}

OF_THE_COMMAND = {
    ("hlep",): "no verb 'hlep'; did you mean help?",
    ("trp",): "no verb 'trp'; did you mean trap?",
    ("trap", "add", "mallox", "10"): "traps are set by `karst run --trap SPEC COMMAND`, or in GDB by `karst trap add SPEC`",
    ("--color", "alwys", "info"): "--color takes no 'alwys'; did you mean always?",
    ("--color", "zzz", "info"): "--color takes auto, always or never, not 'zzz'",
    ("--sysrot", "/", "info"): "no verb has an option --sysrot; did you mean --sysroot?",
    ("1234", "summary"): "'1234' is no verb's; did you mean `karst -p 1234 summary`?",
    ("summary", "1234"): "'1234' is no verb's; did you mean `karst -p 1234 summary`?",
    ("-P", "1234", "holes"): "'1234' is no verb's; did you mean `karst -p 1234 holes`?",
    ("/etc/passwd",): "'/etc/passwd' is no verb's; did you mean `karst -c /etc/passwd summary`?",
    ("run", "--trp", "malloc", "true"): "run has no option --trp; did you mean --trap?",
    ("run", "-x", "true"): "run has no option -x; see `karst run --help`",
    ("run", "--mark=1", "true"): "--mark takes no value",
    ("run", "--trap"): "--trap needs a value; see `karst run --help`",
    ("run", "--action", "lgo", "true"): "--action takes no 'lgo'; did you mean log?",
}

OF_GDB = {
    "karst trap remvoe 1": "no trap command 'remvoe'; did you mean remove?",
    "karst trap zzz": "no trap command 'zzz'; `help karst trap` lists all",
    "set karst cuont 3": "no setting 'cuont'; did you mean count?",
    "show karst cuont": "no setting 'cuont'; did you mean count?",
    "karst rum": "no verb 'rum'; did you mean run?",
    "karst zzz": "no verb 'zzz'; `help karst` lists all",
    "karst run --marc": "run has no option --marc; did you mean --mark?",
    "karst summary --jsn": "summary has no option --jsn; did you mean --json?",
}


@pytest.fixture(scope="module")
def pid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with started([TESTS / "debugged"], tmp_path_factory.mktemp("mistyped")) as program:
        yield str(program.pid)


def said(*words: str) -> str:
    done = karst(*words)
    assert done.returncode == 2 and not done.stdout, done
    return done.stderr


def test_command_line(pid: str) -> None:
    for words, text in OF_VERBS.items():
        assert said("-p", pid, *words.split()) == f"karst: {text}\n"
    for typed, text in OF_THE_COMMAND.items():
        assert said(*typed) == f"karst: {text}\n"
    for spec, text in OF_TRAPS.items():
        assert said("run", "--trap", spec, "true") == f"karst: {text}\n"


def test_name_of_a_process(directory: Path) -> None:
    """Whose id is wanted: told, if only one has that name."""
    name = f"karst_{os.getpid()}"
    wrong = f"karst: '{name}' is no process id"
    shutil.copy(TESTS / "debugged", directory / name)
    with started([directory / name], directory) as program:
        assert said("-p", name, "summary") == f"{wrong}; did you mean -p {program.pid}?\n"
        with started([directory / name], directory):
            assert said("-p", name, "summary") == f"{wrong}; 2 processes have that name (pgrep {name})\n"
    assert said("-p", name, "summary") == f"{wrong}\n"


def test_library_alone() -> None:
    """A trap that a program finds in its environment: the preload library says it itself."""
    environment = {**os.environ, "LD_PRELOAD": str(BUILD / "libkarst-preload.so"), "KARST_TRAP": "mallox 100"}
    done = subprocess.run(["/bin/true"], env=environment, capture_output=True, text=True, timeout=60)
    assert "'mallox' is unknown; did you mean malloc?" in done.stderr, done


@pytest.mark.skipif(shutil.which(DRGN) is None, reason="needs drgn")
def test_drgn(pid: str) -> None:
    target = DrgnTarget(["-p", pid])
    for words, text in {"blocks --sort sze": OF_VERBS["blocks --sort sze"], "sumary": OF_VERBS["sumary"],
                        "gcoer": "no verb 'gcoer'; did you mean gcore?",
                        "--color alwys info": "--color takes no 'alwys'; did you mean always?",
                        "gcore --jsno x": "no option --jsno here; did you mean --json?"}.items():
        assert target.one_line(*words.split()) == f"karst: {text}"


def test_gdb(pid: str, directory: Path) -> None:
    asked = {**{f"karst {words}": text for words, text in OF_VERBS.items()},
             **{f"karst trap add {spec}": text for spec, text in OF_TRAPS.items()}, **OF_GDB}
    answers = gdb(["-p", pid], list(asked), directory)
    for words, text in asked.items():
        assert answers.of(words).one_line() == text


def test_gdb_without_a_process(directory: Path) -> None:
    """What is wrong with the words comes before what is missing."""
    asked = ["karst blocks --sort sze", "karst summary --jsn", "karst sumary", "karst summary"]
    answers = gdb([], asked, directory)
    assert "did you mean size?" in answers.of(asked[0]).one_line()
    assert "did you mean --json?" in answers.of(asked[1]).one_line()
    assert "did you mean summary?" in answers.of(asked[2]).one_line()
    assert "no process" in answers.of(asked[3]).one_line()


def test_gdb_prefixes_alone(directory: Path) -> None:
    """They list what may follow."""
    answers = gdb([], ["karst", "karst trap", "set karst", "show karst"], directory)
    assert "karst summary -- " in answers.of("karst").good()
    assert "karst trap add -- " in answers.of("karst trap").good()
    assert "set karst count -- " in answers.of("set karst").good()
    assert "20 rows" in answers.of("show karst").good()
