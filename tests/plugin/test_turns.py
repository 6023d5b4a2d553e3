"""Workers take turns: a worker that times is the only one on its host that runs a test."""

import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import execnet
import pytest

from pytest_torchcompile.plugin.turns import Turns

from .project import verdicts

WORKERS = ["gw0", "gw1", "gw2"]


def test_who_times_is_alone_and_nobody_waits_for_ever(tmp_path):
    """Three workers, each with tests that time: enough that taking turns is no coincidence."""
    running, wrong, timed = set(), [], []

    def work(own):
        turns = Turns(tmp_path, own)
        for _ in range(5):
            with turns.running():
                running.add(own)
                time.sleep(0.002)
                running.discard(own)
                with turns.alone():
                    wrong.extend(running)
                    running.add(own)
                    time.sleep(0.002)
                    wrong.extend(running - {own})
                    running.discard(own)
                    timed.append(own)

    threads = [threading.Thread(target=work, args=(own,), daemon=True) for own in WORKERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert wrong == []
    assert sorted(timed) == sorted(WORKERS * 5)


def test_tests_run_side_by_side_otherwise(tmp_path):
    one, other = (Turns(tmp_path, own) for own in WORKERS[:2])
    with one.running(), other.running():
        pass


def test_a_workers_lock_ends_with_it(tmp_path):
    script = (
        "import os, pathlib, sys\n"
        "from pytest_torchcompile.plugin.turns import Turns\n"
        "with Turns(pathlib.Path(sys.argv[1]), 'gw1').running():\n"
        "    os._exit(1)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 1
    turns = Turns(tmp_path, "gw0")
    with turns.running(), turns.alone():
        pass


TWO = """
    @pytest.mark.compiled_equivalence(observation=Box((2,)), methods=["get_value", "get_logits"])
    def test_agent():
        import os
        note("processes", str(os.getpid()))
        return Agent()
"""


@pytest.fixture
def servers(tmp_path):
    """Two of execnet's socket servers on this machine, which stand in for two others."""
    script = pathlib.Path(execnet.__file__).parent / "script" / "socketserver.py"
    command = [sys.executable, "-u", str(script), "127.0.0.1:0"]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)
        for _ in range(2)
    ]
    # "... Entering Accept loop ('127.0.0.1', 40123)"
    yield [re.search(r"\('([\d.]+)', (\d+)\)", server.stdout.readline()).groups() for server in started]
    for server in started:
        server.kill()
        server.communicate()


def test_two_hosts_make_one_report(project, servers):
    project.write(TWO)
    workers = [f"--tx=socket={host}:{port}//chdir={project.path}" for host, port in servers]
    timed = ("--compile-benchmark-seconds=0.05", "--benchmark-json=benchmarks.json")
    result = project.subprocess(*workers, "--dist=load", *timed)
    cases = [f"get_{name}-{phase}" for name in ("logits", "value") for phase in ("rollout", "update")]
    assert verdicts(result) == {f"test_policy.py::test_agent[{case}]": "equal" for case in cases}
    assert len(set(project.lines("processes"))) == 2, "both have run tests"
    entries = json.loads((project.path / "benchmarks.json").read_text())["benchmarks"]
    assert len(entries) == 2 * len(cases)


CACHED = """
    import os

    @pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout", methods="get_value")
    def test_agent():
        note("caches", os.environ.get("TORCHINDUCTOR_CACHE_DIR"))
        return Agent()
"""


def test_the_compile_cache_is_set_for_the_session_and_put_back(project, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    project.write(CACHED)
    assert list(verdicts(project.check("--compile-cache=kept")).values()) == ["equal"]
    assert set(project.lines("caches")) == {str(project.path / "kept")}
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"


def test_without_a_setting_the_compile_cache_lies_in_pytests(project, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    project.write(CACHED)
    assert list(verdicts(project.check()).values()) == ["equal"]
    assert set(project.lines("caches")) == {str(project.path / ".pytest_cache" / "d" / "torchcompile")}
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    result = project.pytest("--compile-check", "--collect-only")
    folder = os.path.join(".pytest_cache", "d", "torchcompile")
    result.stdout.fnmatch_lines([f"compile check: backend inductor; its code is kept in {folder}*"])


@pytest.mark.parametrize("arguments", [("-p", "no:cacheprovider"), ("--no-compile-check",)], ids=" ".join)
def test_the_compile_cache_stays_torchs_own(project, monkeypatch, arguments):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    project.write(
        CACHED + "\n    def test_plain(): note('caches', os.environ.get('TORCHINDUCTOR_CACHE_DIR'))"
    )
    project.check(*arguments)
    # Torch sets the variable to its default when it first asks for the folder.
    assert project.lines("caches")
    assert not any(str(project.path) in line for line in project.lines("caches"))


def test_workers_use_the_compile_cache(project):
    project.write(CACHED)
    assert list(verdicts(project.subprocess("-n1", "--compile-cache=kept")).values()) == ["equal"]
    assert {pathlib.Path(line) for line in project.lines("caches")} == {project.path / "kept"}
