"""A short run of tests/fuzz/mutate: every verb on damaged cores, under sanitizers. `make test-mutated` is the
long one."""
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("KARST_BUILD", ROOT / "build"))


def test_no_verb_falls_over_damaged_cores() -> None:
    made = subprocess.run(["make", "-s", "test-mutated", f"BUILD={BUILD}", "CASES=1000", "SEED=77"],
                          cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert made.returncode == 0, made.stdout[-8000:]
    assert "1000 cases, seed 77: 0 went wrong" in made.stdout
