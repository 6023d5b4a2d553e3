"""What is wrong with the machine: no C++ compiler, a cache that can't be written, a cache with broken files."""

import os

import pytest

from .project import verdicts

MARKED = """
class Smooth(Agent):
    def forward(self, x): return self.actor(x).tanh()

@pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")
def test_agent(): return Smooth()
"""
INDUCTOR = ("--compile-check", "--compile-examples=0", "--compile-batch=4", "--compile-beyond=off", "-rs")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder of its own for inductor's code."""
    folder = tmp_path / "inductor"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    return folder


def run(project):
    """Run pytest in a process of its own: torch reads CXX once."""
    return project.pytester.runpytest_subprocess("-p", "no:randomly", *INDUCTOR)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("variable", "value", "tried"),
    [("CXX", "no-such-compiler", "no-such-compiler"), ("PATH", "/nowhere", "g++")],
)
def test_no_compiler_says_what_to_do(project, monkeypatch, variable, value, tried):
    monkeypatch.setenv(variable, value)
    monkeypatch.delenv("CXX", raising=False) if variable == "PATH" else None
    project.write(MARKED)
    result = run(project)
    result.assert_outcomes(skipped=1)
    (told,) = [line for line in result.outlines if line.startswith("SKIPPED")]
    sentence = (
        f"compile failed: forward-rollout: there is no C++ compiler: torch tried '{tried}'; install g++ (Debian, "
        f"Ubuntu: apt install g++), set CXX to a compiler, or give --compile-backend=aot_eager "
        f"(backend='aot_eager'), which needs none"
    )
    assert sentence in told


def test_a_cache_that_can_not_be_written_is_one_error(project, monkeypatch):
    """A path below a file, because root may write to any folder."""
    file = project.path / "file"
    file.write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(file / "cache"))
    project.write(MARKED)
    result = project.check()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (told,) = [line for line in result.errlines if line.startswith("ERROR")]
    assert told == (
        f"ERROR: TORCHINDUCTOR_CACHE_DIR={file}/cache can't be written (Not a directory); set "
        f"TORCHINDUCTOR_CACHE_DIR, or --compile-cache, to a folder that can be"
    )
    project.check(f"--compile-cache={project.path / 'other'}").assert_outcomes(passed=1)
    project.pytest().assert_outcomes(skipped=1)


def shared_objects(cache):
    """The compiled graphs in the cache."""
    return sorted(cache.glob("*/*.main.so"))


def test_a_file_of_a_killed_run_is_removed_and_compiled_again(project, cache):
    project.write(MARKED)
    run(project).assert_outcomes(passed=1)
    (broken, *_) = shared_objects(cache)
    os.truncate(broken, 0)
    result = run(project)
    assert verdicts(result) == {"test_policy.py::test_agent[forward-rollout]": "equal"}
    (told,) = [line for line in result.outlines if "removed 1" in line]
    assert "removed 1 shared object of 0 bytes from inductor's cache" in told
    assert broken.name in told
    assert broken.stat().st_size > 0
    assert "removed 1" not in run(project).stdout.str()


def test_old_broken_files_are_removed_at_the_start_and_fresh_ones_are_left(project, cache):
    """A fresh one may be written by another process right now."""
    old, fresh, sound = (cache / "ab" / f"{name}.so" for name in ("old", "fresh", "sound"))
    old.parent.mkdir(parents=True)
    for file in (old, fresh, sound):
        file.write_bytes(b"x" if file is sound else b"")
    for file in (old, sound):
        os.utime(file, (1, 1))
    project.write(MARKED)
    result = project.check()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["compile check: *removed 1 shared object of 0 bytes*: old.so"])
    assert [file.exists() for file in (old, fresh, sound)] == [False, True, True]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RuntimeError("C++ compile error\n\nx.cpp:1:10: fatal error: Python.h: No such file or directory"),
            "Python's headers are missing; install them (Debian, Ubuntu: apt install python3-dev), or give",
        ),
        (
            PermissionError(13, "Permission denied", "{cache}/ab/x.py"),
            "inductor can't write {cache}/ab/x.py; set TORCHINDUCTOR_CACHE_DIR, or --compile-cache, to a folder",
        ),
        (PermissionError(13, "Permission denied", "/elsewhere/x.py"), "PermissionError: [Errno 13]"),
        (PermissionError(13, "Permission denied", "{cache}-of-another/x.py"), "PermissionError: [Errno 13]"),
        (
            RuntimeError("C++ compile error\n\nCommand:\ng++ x\n\nx.cpp:7:1: error: expected ';'"),
            "RuntimeError: C++ compile error: x.cpp:7:1: error: expected ';'",
        ),
    ],
)
def test_the_sentence_on_a_failure(cache, error, sentence):
    from pytest_torchcompile.compiling.failures import failure_text

    if isinstance(error, OSError):
        error.filename = error.filename.replace("{cache}", str(cache))
    assert failure_text(error).startswith(sentence.replace("{cache}", str(cache)))
