"""A torch that is too old is one sentence, a newer one than tested, and one that can't do all, a note."""

import importlib.metadata

import pytest

MARKED = """
@pytest.mark.compiled_equivalence(observation=Box((2,)), phases="rollout")
def test_agent(): return Agent()

def test_other(): pass
"""
NEEDED = "--compile-check needs torch 2.9 or newer: pip install 'torch>=2.9'"


IN_ANY_ORDER = (
    "before torch 2.10 inductor may change the order of random draws, so a correct policy that draws twice in a "
    "call may differ"
)


@pytest.fixture
def installed(monkeypatch):
    """Pretend that this version of torch is installed; None for no torch."""
    real = importlib.metadata.version

    def install(version):
        def pretended(name):
            if name != "torch":
                return real(name)
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(importlib.metadata, "version", pretended)

    return install


@pytest.mark.parametrize(
    "version, sentence",
    [
        ("2.8.0+cpu", f"torch 2.8.0+cpu is installed; {NEEDED}"),
        ("1.13.1", f"torch 1.13.1 is installed; {NEEDED}"),
        (None, f"torch is not installed; {NEEDED}"),
    ],
)
def test_an_older_torch_is_one_sentence(project, installed, version, sentence):
    project.write(MARKED)
    installed(version)
    result = project.check()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert [line for line in result.errlines if line] == [f"ERROR: {sentence}"]


def test_without_the_check_an_older_torch_is_no_matter(project, installed):
    project.write(MARKED)
    installed("2.8.0")
    project.pytest().assert_outcomes(passed=1, skipped=1)


@pytest.mark.parametrize(
    "version, note",
    [
        ("2.16.0", "torch 2.16.0 is newer than 2.15, the newest that the check was tested on"),
        ("3.0.0a0+git1", "torch 3.0.0a0+git1 is newer than 2.15, the newest that the check was tested on"),
        ("2.15.2", ""),
        ("2.13.0+cpu", ""),
        ("2.9.0+cu128", IN_ANY_ORDER),
        ("2.10.0", ""),
        ("unknown", ""),
    ],
)
def test_what_a_torch_can_not_do_or_was_not_tried_with_is_a_note_and_no_failure(
    project, installed, version, note
):
    project.write(MARKED)
    installed(version)
    result = project.check()
    result.assert_outcomes(passed=2)
    (header,) = [line for line in result.outlines if line.startswith("compile check: ")]
    assert any(words in header for words in ("newer than", "order of random draws")) is bool(note)
    assert header.endswith(note)
