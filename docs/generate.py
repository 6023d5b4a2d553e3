"""Writes the generated parts of the pages here, which come from the code: ``python docs/generate.py``.

The parts stand between ``<!-- generated: NAME -->`` and ``<!-- end -->``; the rest is written by hand.
``python docs/generate.py transcript`` writes what pytest prints into the README, which needs minutes and
a C++ compiler. `tests/test_docs.py` fails when a page is not what this would write.
"""

import dataclasses
import enum
import inspect
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import pytest_torchcompile
from pytest_torchcompile.options import OPTIONS
from pytest_torchcompile.specs.spaces import Spec, Wrapped

HERE = pathlib.Path(__file__).parent
README = HERE.parent / "README.md"
PAGES = [HERE / "reference.md", HERE / "libraries.md"]
EXAMPLES = {
    "Stable-Baselines3": "zoo/test_sb3.py",
    "sb3-contrib": "zoo/test_sb3_contrib.py",
    "TorchRL": "zoo/test_torchrl.py",
    "tianshou": "zoo/test_tianshou.py",
    "skrl": "zoo/test_skrl.py",
    "rsl_rl": "zoo/test_rsl_rl.py",
    "RLlib": "zoo/test_rllib.py",
    "rl_games": "zoo/test_rl_games.py",
    "CleanRL": "test_cleanrl.py",
    "CleanRL, LSTM and transformer": "zoo/test_cleanrl_memory.py",
    "LeanRL": "zoo/test_leanrl.py",
    "Keisei": "test_keisei.py",
}
PUBLIC = [getattr(pytest_torchcompile, name) for name in pytest_torchcompile.__all__]


def options() -> str:
    """The table of options."""
    rows = ["| option | default | accepted | meaning |", "|---|---|---|---|"]
    for name, field in OPTIONS.items():
        expected, meaning = field.metadata["expected"], field.metadata["help"]
        rows.append(f"| `{name}` | {_default(field)} | {_cell(expected)} | {_cell(meaning)} |")
    return "\n".join(rows)


def _default(field: "dataclasses.Field[object]") -> str:
    default = field.default
    return f"`{', '.join(map(str, default)) if isinstance(default, tuple) else str(default).lower()}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def specs() -> str:
    """A section for each spec."""
    return _sections(value for value in PUBLIC if _is_a(value, (Spec, Wrapped)))


def functions() -> str:
    """A section for each function."""
    return _sections(value for value in PUBLIC if inspect.isfunction(value))


def records() -> str:
    """A section for each class of which users get instances."""
    others = (Spec, Wrapped, Exception, enum.Enum)
    return _sections(v for v in PUBLIC if isinstance(v, type) and not issubclass(v, others))


def errors() -> str:
    """A table of the exceptions."""
    found = [value for value in PUBLIC if _is_a(value, Exception)]
    rows = [f"| `{e.__name__}` | {_bases(e)} | {_first_paragraph(e)} |" for e in found]
    return "\n".join(["| exception | a kind of | meaning |", "|---|---|---|", *rows])


def _bases(error: type) -> str:
    return ", ".join(f"`{base.__name__}`" for base in error.__bases__)


def _is_a(value: object, kind: "type | tuple[type, ...]") -> bool:
    return isinstance(value, type) and issubclass(value, kind)


def _first_paragraph(value: object) -> str:
    text = (inspect.getdoc(value) or "").partition("\n\n")[0]
    return _cell(_markdown(text.replace("\n", " ")))


def libraries() -> str:
    """A section for each example of a library: what its docstring says, and its code."""
    return "\n\n".join(_example(title, path) for title, path in EXAMPLES.items())


def _example(title: str, path: str) -> str:
    source = (HERE.parent / "examples" / path).read_text()
    docstring, _, code = source.removeprefix('"""').partition('"""\n')
    lead = _markdown(docstring.strip())
    return f"## {title}\n\n{lead}\n\n```python\n# examples/{path}\n{code.strip()}\n```"


def _sections(values: object) -> str:
    return "\n\n".join(map(_section, values))


def _section(value: type) -> str:
    """A heading with the signature and what the docstring says, without its example."""
    parameters = inspect.signature(value).parameters.values()
    called = inspect.isfunction(value) or _is_a(value, Spec)
    names = f"({_signature(parameters)})" if called else ""
    lines = [f"### `{value.__name__}{names}`", ""]
    for block in inspect.cleandoc(value.__doc__ or "").split("\n\n"):
        heading, _, body = block.partition("\n")
        if heading in ("Args:", "Raises:"):
            lines += [*_bullets(body, "raises " if heading == "Raises:" else ""), ""]
        elif heading == "Returns:":
            lines += [f"Returns: {_markdown(' '.join(body.split()))}", ""]
        elif heading != "Example:":
            lines += [_markdown(block), ""]
    return "\n".join(lines).rstrip()


def _signature(parameters: object) -> str:
    """The parameters as in code, without their annotations."""
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    return str(inspect.Signature(bare))[1:-1]


def _bullets(text: str, prefix: str) -> list[str]:
    """Bullets out of ``name: what it is``, continued on lines that are indented further."""
    joined = re.sub(r"\n\s{5,}", " ", text)
    items = (line.strip().partition(": ") for line in joined.splitlines())
    return [f"* {prefix}`{name}`: {_markdown(meaning)}" for name, _, meaning in items]


def _markdown(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", text)


PARTS = {part.__name__: part for part in (options, specs, functions, records, errors, libraries)}


def generated(text: str) -> str:
    """`text` with each generated part as the code has it now."""
    for name, render in PARTS.items():
        if f"<!-- generated: {name} -->" not in text:
            continue
        before, start, rest = text.partition(f"<!-- generated: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}{start}\n{render()}\n\n{end}{after}"
    return text


TRANSCRIPT = re.compile(
    r"(?<=```console\n)\$ pytest (?P<arguments>[^\n]*)\n(?P<printed>_{3}.*?)\n(?=```)", re.DOTALL
)
"""Matches the block of the README that shows what a run of pytest prints."""


def transcript_of(output: str) -> str:
    """What the README shows of a run: from the title of the first failure to the count of the cases."""
    lines = output.splitlines()
    first = next(i for i, line in enumerate(lines) if re.match(r"_{3,} ", line))
    last = next(i for i, line in enumerate(lines) if re.match(r"\d+ cases: ", line))
    return "\n".join(lines[first : last + 1])


def with_transcript(readme: str) -> str:
    """The README with what its command prints now, in a terminal of 80 columns."""
    found = TRANSCRIPT.search(readme)
    assert found is not None, "the README shows no run of pytest"
    command = [sys.executable, "-m", "pytest", "-p", "no:randomly", *found["arguments"].split()]
    with tempfile.TemporaryDirectory() as folder:
        for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", readme, re.DOTALL):
            (pathlib.Path(folder) / name).write_text(text)
        environment = os.environ | {"COLUMNS": "80", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache"}
        ran = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    start, end = found.span("printed")
    return readme[:start] + transcript_of(ran.stdout) + readme[end:]


if __name__ == "__main__":
    if sys.argv[1:] == ["transcript"]:
        README.write_text(with_transcript(README.read_text()))
    else:
        for page in PAGES:
            page.write_text(generated(page.read_text()))
