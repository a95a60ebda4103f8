"""Real programs in the middle of their work have healthy heaps: karst has nothing to find in them, alive and
from a core, at whatever instruction they were stopped."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from karst_command import Finding, Target
from karst_programs import gcore, started
from karst_works import WORKS, let_it_work, process_to_look_at

# A thread that is stopped in the middle of malloc may leave what only looks like damage: `suspect`, which is
# right to say. Looked at again a moment later it is gone. What is `corrupt` never is.
LOOKS = 5


def findings_of(target: Target) -> list[Finding]:
    summary = target.json("summary")
    assert summary["total"]["live"]["blocks"] > 0, "has no heap"
    _, findings = target.check()
    corrupt = [str(finding) for finding in findings if finding.severity == "corrupt"]
    if corrupt:
        pytest.fail(f"{target.options}: " + "\n".join(corrupt), pytrace=False)
    return findings


@pytest.mark.parametrize("name", WORKS)
def test_healthy(name: str, directory: Path) -> None:
    work = WORKS[name](directory)
    with started(work.command, directory, work.environment, ready=False) as program:
        let_it_work(work, program)
        pid = process_to_look_at(work, program.pid)
        for _ in range(LOOKS):
            os.kill(pid, signal.SIGSTOP)
            findings = findings_of(Target.process(pid))
            if not findings:
                findings = findings_of(Target.core(gcore(pid, directory), "--no-symbols"))
            os.kill(pid, signal.SIGCONT)
            if not findings:
                return
            time.sleep(0.1)
    pytest.fail(f"suspect in each of {LOOKS} looks: " + "\n".join(map(str, findings)), pytrace=False)
