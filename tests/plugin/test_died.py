"""A session that died without a report is reported by the next one; one that ended normally leaves nothing."""

import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest

from pytest_torchcompile.plugin import died

from .project import verdicts

MARKED = '@pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")'
FOLDER = ".compile-failures"
CASE = "test_policy.py::test_agent[forward-rollout]"
AGENT = f"{MARKED}\ndef test_agent(): return Agent()\n"
DYING = f"""
    import os

    class Dying(Agent):
        def forward(self, x):
            if not torch.compiler.is_compiling() and not x.any(): os._exit(0)
            return super().forward(x)

    {MARKED}
    def test_agent(): return Dying()
"""
IN_CI = f"! grep -s . {FOLDER}/*.running"
"""The documented way to see it without a next run."""

# A test that nothing is compiled for, which ends with the file `go`.
WAITING = """
    import pathlib, time

    def test_waiting():
        pathlib.Path("waiting").touch()
        while not pathlib.Path("go").exists(): time.sleep(0.01)
"""
LISTING = f"""
    import pathlib

    def test_listing():
        for path in pathlib.Path({FOLDER!r}).glob("*.running"):
            for line in path.read_text().splitlines(): note("noted", line)
"""


def left(project):
    """The files of sessions that live or died."""
    return sorted((project.path / FOLDER).glob("*.running"))


def leave(project, text="process 1, begun 2001-02-03 04:05:06\ntest_a.py::test_a\n\n", name="session-1"):
    """Leave what a session that died has left."""
    folder = project.path / FOLDER
    folder.mkdir(exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    (folder / f"{name}.running").write_bytes(text if isinstance(text, bytes) else text.encode())


def told(result):
    """What is said of earlier sessions."""
    return [line for line in result.outlines if line.startswith("an earlier session died")]


def assert_nothing_is_left(project):
    assert not (project.path / FOLDER).exists()


def test_a_session_that_died_is_told_by_the_next_one_that_checks(project):
    project.write(DYING)
    result = project.subprocess("-p", "no:cacheprovider")
    assert result.ret == 0, "nothing else tells it"
    assert verdicts(result) == {}
    (file,) = left(project)
    began, where, step = file.read_text().splitlines()
    assert where == CASE
    assert re.fullmatch(r"example \d+, eager call", step)

    project.write(AGENT)
    assert told(project.pytest()) == []
    assert left(project) == [file], "nobody was told"
    (sentence,) = told(project.check())
    assert sentence.startswith(f"an earlier session died without a report ({began}, last seen ")
    assert f"): it was at {CASE}, {step}; --compile-isolate checks each case" in sentence
    assert_nothing_is_left(project)
    assert told(project.check()) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="the line is for bash")
def test_a_ci_sees_it_with_the_documented_line(project):
    def seen():
        command = ["bash", "-c", IN_CI]
        return subprocess.run(command, cwd=project.path, capture_output=True, text=True, check=False)

    docs = pathlib.Path(__file__).parents[2] / "docs" / "reports.md"
    assert IN_CI in docs.read_text()
    assert (seen().returncode, seen().stdout + seen().stderr) == (0, "")
    leave(project)
    assert seen().returncode == 1
    assert "test_a.py::test_a" in seen().stdout


ENDS = {
    "passes": (AGENT, (), 0),
    "fails": ("def test_a(): assert False", (), 1),
    "Ctrl-C": ("def test_a(): raise KeyboardInterrupt", (), 2),
    "pytest.exit()": ("def test_a(): pytest.exit('enough')", (), 2),
    "no test": ("", (), 5),
    "an error of collection": ("import not_there", (), 2),
    "a usage error": (AGENT, ("--compile-fail-on=speedup:10%",), 4),
    "collected only": (AGENT, ("--collect-only",), 0),
    "no protection": (AGENT, ("--compile-proof=agents.py/folder",), 0),
}


@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_left_of_a_session_that_came_to_its_end(project, end):
    source, arguments, status = ENDS[end]
    project.write(source)
    result = project.check(*arguments, no_reraise_ctrlc=True)
    assert result.ret == status
    assert told(result) == []
    assert_nothing_is_left(project)


def test_what_else_is_in_the_folder_stays(project):
    leave(project)
    (project.path / FOLDER / "case").mkdir()
    project.write("def test_a(): pass")
    assert len(told(project.check())) == 1
    assert sorted(path.name for path in (project.path / FOLDER).iterdir()) == [".gitignore", "case"]


def test_a_folder_that_is_the_users_own_stays(project):
    (project.path / FOLDER).mkdir()
    project.write("def test_a(): pass")
    project.check()
    assert list((project.path / FOLDER).iterdir()) == []


def test_the_file_is_where_the_failures_are(project):
    project.write(LISTING.replace(repr(FOLDER), "'failures'"))
    project.check("--compile-proof=failures")
    assert project.lines("noted")[1] == "test_policy.py::test_listing"
    assert not (project.path / "failures").exists()


def test_a_run_that_does_not_check_writes_nothing(project):
    project.write(LISTING)
    project.pytest().assert_outcomes(passed=1)
    assert project.lines("noted") == []


def test_the_controller_of_workers_has_the_file(project):
    project.write(LISTING)
    result = project.subprocess("-n1")
    result.assert_outcomes(passed=1)
    assert project.lines("noted")[1:2] == ["the tests of pytest-xdist's workers"]
    assert_nothing_is_left(project)


def test_one_that_lives_is_told_from_one_that_was_killed(project):
    project.write(WAITING)
    command = [sys.executable, "-m", "pytest", "--compile-check", "-p", "no:cacheprovider"]
    sessions = []
    for _ in range(2):
        sessions.append(subprocess.Popen(command, cwd=project.path, stdout=subprocess.DEVNULL))
        wait_for(project.path / "waiting")
        (project.path / "waiting").unlink()
    killed, living = sessions
    try:
        assert len(left(project)) == 2
        killed.kill()
        killed.wait()
        project.write("def test_a(): pass", name="test_other")
        (sentence,) = told(project.check("test_other.py"))
        assert f"process {killed.pid}, " in sentence
        assert sentence.endswith("): it was at test_policy.py::test_waiting"), "it is no case to isolate"
        (file,) = left(project)
        assert f"process {living.pid}, " in file.read_text()
        assert told(project.check("test_other.py")) == []
    finally:
        (project.path / "go").touch()
        assert living.wait(timeout=60) == 0
    assert_nothing_is_left(project)


def wait_for(path):
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_the_last_of_several_is_told_and_all_are_cleared(project):
    for number in range(3):
        leave(project, name=f"session-{number}")
    project.write("def test_a(): pass")
    (sentence,) = told(project.check())
    assert "without a report, and so did 2 before it (process 1, " in sentence
    assert_nothing_is_left(project)


@pytest.mark.parametrize("text", [b"\x1b[2J\xff", b"a\nb\n\x1b]0;c\x07\nd" * 9999], ids=["one line", "long"])
def test_whatever_is_in_the_file_is_one_line_that_no_terminal_obeys(project, text):
    leave(project, text)
    project.write("def test_a(): pass")
    result = project.check("--color=no")
    (sentence,) = told(result)
    assert "\\x1b" in sentence
    assert "\x1b" not in result.stdout.str()
    assert len(sentence) < 2000


def test_a_file_that_was_just_begun_is_nobodys_death(project):
    leave(project, "")
    project.write("def test_a(): pass")
    assert told(project.check()) == []
    assert len(left(project)) == 1


def test_without_locks_an_open_file_is_one_of_who_lives(project, monkeypatch):
    """As on Windows, where deleting it is refused."""

    def refused(self, missing_ok=False):
        raise PermissionError(self)

    leave(project)
    project.write("def test_a(): pass")
    monkeypatch.setattr(died, "fcntl", None)
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "unlink", refused)
        assert told(project.check()) == []
    for file in left(project):
        if file.name != "session-1.running":
            file.unlink()
    with monkeypatch.context() as patch:
        # Its own, which could be deleted here, is left empty.
        patch.setattr(died.steps.Steps, "note", lambda *_: None)
        assert len(told(project.check())) == 1
