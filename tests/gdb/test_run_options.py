"""Options of `karst run` and `karst inject`: a wrong value is refused before anything is started or changed, in the same
words at the shell and in GDB."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gdb_runner import gdb
from karst_command import TESTS, karst
from karst_programs import started

CALLS = TESTS / "calls"
ALONE = "--stacks is for marks and the recorder, and none is on: give --mark or --recorder with it"
TOO_LONG = "d" * 250

# For `karst run` and `karst inject`.
OF_BOTH = {
    "--recorder=1Q": "--recorder: '1Q' is no size; sizes are like 256K, 1M or 16M",
    "--recorder=": "--recorder: '' is no size; sizes are like 256K, 1M or 16M",
    "--recorder=0": "--recorder: '0' is no size; sizes are like 256K, 1M or 16M",
    "--recorder=-1": "--recorder: '-1' is no size; sizes are like 256K, 1M or 16M",
    "--recorder=1.5M": "--recorder: '1.5M' is no size; sizes are like 256K, 1M or 16M",
    "--recorder=1M:2M": "--recorder: '1M:2M' is no size; sizes are like 256K, 1M or 16M",
    "--recorder=2T": "--recorder: '2T' is too much; a thread may keep up to 1T",
    "--recorder=99999999999999999999": "--recorder: '99999999999999999999' is too much; a thread may keep up to 1T",
    "--mark --stacks=": "--stacks: '' is no number of frames; 1 to 64 may be kept",
    "--mark --stacks=0": "--stacks: '0' is no number of frames; 1 to 64 may be kept",
    "--mark --stacks=65": "--stacks: '65' is no number of frames; 1 to 64 may be kept",
    "--mark --stacks=8k": "--stacks: '8k' is no number of frames; 1 to 64 may be kept",
    "--stacks=8": ALONE,
    "--mark=1": "--mark takes no value",
}
OF_RUN = {
    "--stacks=8 --trap malloc": ALONE,
    "--action=": "--action takes log, stop, core or abort, not ''",
    "--action=stpo": "--action takes no 'stpo'; did you mean stop?",
    "--trap=": "an empty trap; try one like realloc 8880819",
    "--recorder-dir=": "--recorder-dir takes a directory, not ''",
    "--recorder-dir=/dev/null": "--recorder-dir: /dev/null is no directory",
    "--recorder-dir=file": "--recorder-dir: file is no directory",
    "--recorder-dir=dangling": "--recorder-dir: dangling is no directory",
    "--recorder-dir=file/rings": "--recorder-dir: file/rings can't be made: Not a directory",
    "--recorder-dir=none/rings": "--recorder-dir: none/rings can't be made: No such file or directory",
    "--recorder-dir=/proc": "--recorder-dir: no file can be made in /proc: No such file or directory",
    "--recorder-dir=locked/rings": "--recorder-dir: locked/rings can't be made: Permission denied",
}
AT_THE_SHELL = {
    "-xm": "run has no option -x; see `karst run --help`",
    "--mark -xm": "run has no option -x; see `karst run --help`",
}
IN_GDB = {
    "karst run more": "what is 'more'? What stands behind `--` is the program's",
    "karst run --mark --stacks": "--stacks needs a value; see `help karst run`",
    "karst run --action": "--action needs a value; see `help karst run`",
    "karst inject more": "what is 'more'? inject takes options only; the process is the one GDB is attached to",
    "karst inject --recorder-dir=rings": "inject has no option --recorder-dir; did you mean --recorder?",
}


@pytest.fixture(name="places")
def _places(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (directory / "file").touch()
    (directory / "dangling").symlink_to("nothing")
    (directory / "locked").mkdir(mode=0o500)
    monkeypatch.chdir(directory)
    return directory


def _for_user(table: dict[str, str]) -> dict[str, str]:
    """Root may write anywhere."""
    return {words: text for words, text in table.items() if os.geteuid() != 0 or "locked" not in words}


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize(("words", "text"), _for_user({**OF_BOTH, **OF_RUN, **AT_THE_SHELL}).items())
def test_at_the_shell(words: str, text: str) -> None:
    done = karst("run", *words.split(), "--", CALLS, "sizes")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"karst: {text}\n")


def test_in_gdb(places: Path) -> None:
    asked = {**{f"karst run {words} -- sizes": text for words, text in _for_user({**OF_BOTH, **OF_RUN}).items()},
             **{f"karst inject {words}": text for words, text in OF_BOTH.items()}, **IN_GDB}
    with started([TESTS / "debugged"], places) as program:
        answers = gdb([CALLS], [*(words for words in asked if words.startswith("karst run")), f"attach {program.pid}",
                                *(words for words in asked if words.startswith("karst inject"))], places)
        for words, text in asked.items():
            assert answers.of(words).one_line() == text
        assert "libkarst-preload" not in Path(f"/proc/{program.pid}/maps").read_text()
    assert "exited" not in answers.output


@pytest.mark.usefixtures("places")
def test_a_path_that_is_too_long() -> None:
    for _ in range(2):  # it is there at the second time
        said = karst("run", f"--recorder-dir={TOO_LONG}", "--", CALLS, "sizes")
        whole = len(os.path.realpath(TOO_LONG))
        assert (said.returncode, said.stderr) == (
            2, f"karst: --recorder-dir: a path may have 191 characters; that of {TOO_LONG} has {whole}\n")


@pytest.mark.usefixtures("places")
def test_values_at_the_bounds_are_taken() -> None:
    for words in (["--recorder=1", "--stacks=64"], ["--stacks=1", "--trap", "double-free"],
                  ["--mark", "--stacks=1"], ["--stacks=2", "--recorder-dir=rings"], ["--recorder-dir=rings/"]):
        done = karst("run", *words, "--", "sh", "-c", "exit 7")
        assert (done.returncode, done.stderr) == (7, ""), words
    assert {path.suffix for path in Path("rings").iterdir()} == {".ring", ".maps"}


def test_commands_that_are_none(places: Path) -> None:
    (places / "script").write_text("#!/nonexistent\n")
    (places / "script").chmod(0o755)
    for words, status, text in (
            (["no-such-command"], 127, "'no-such-command': there is no such command in PATH"),
            ([""], 127, "'': there is no such command in PATH"),
            (["-r", "4M", "true"], 127, "4M: there is no such command; a size is written --recorder=4M or -r4M"),
            (["./nothing"], 127, "./nothing can't be started: No such file or directory"),
            (["./script"], 127, "./script: the interpreter or loader that it names is not there"),
            (["./file"], 126, "./file can't be started: Permission denied"),
            (["./locked"], 126, "./locked is a directory, not a command")):
        done = karst("run", *words)
        assert (done.returncode, done.stderr) == (status, f"karst: {text}\n")
