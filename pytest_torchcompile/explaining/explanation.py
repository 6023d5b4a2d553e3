"""Explains why a case differs: the compiler stage, the step, the submodule, and a script that reproduces it.

All searches share one budget of seconds. The explanation has what was found in that time. A remark names each
search that found nothing and says why, so that the user knows what was searched for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pytest_torchcompile.beyond.rejection import BrokenContract
from pytest_torchcompile.checking.compiling_branches import compiling_branches
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.trial import Failure
from pytest_torchcompile.explaining.graph_script import graph_script
from pytest_torchcompile.explaining.in_place import assigning_agrees, find_writes
from pytest_torchcompile.explaining.place import Graph, capture_graphs, find_graph, find_module
from pytest_torchcompile.explaining.policy_script import case_script, story_script
from pytest_torchcompile.explaining.proof import CantWrite, Proof, Script, write_proof
from pytest_torchcompile.explaining.python_code import (
    PythonCause,
    constant_results,
    dropped_guards,
    foreign_numbers,
    functions_in_graph,
)
from pytest_torchcompile.explaining.stages import PARTITIONER, STAGES, Stage, first_stage, narrow, up_to
from pytest_torchcompile.explaining.subjects import (
    CannotCompare,
    RejectedInputs,
    Sampler,
    Subject,
    WholeCase,
    WholeStory,
)
from pytest_torchcompile.generation.recipes import Recipe, random_recipe
from pytest_torchcompile.lifecycle.sides import LifecycleSides
from pytest_torchcompile.lifecycle.trial import StoryFailure
from pytest_torchcompile.options import CheckOptions
from pytest_torchcompile.policies.calls import EXITS
from pytest_torchcompile.results import Difference, Explanation
from pytest_torchcompile.runtime.budget import Budget, OutOfTime
from pytest_torchcompile.texts import raised_text, shortest, some

Found = TypeVar("Found")

LEAST_PROOF_S = 30.0
"""Seconds that a script may take even if less of the budget is left: it imports torch and compiles."""


def explain(pair: Pair, failure: Failure, options: CheckOptions, name: str) -> Explanation:
    """Explain why `failure` differs, within `options.explain_seconds`.

    Args:
        pair: the case.
        failure: the example that differs.
        options: how the case is compiled, and the folder for a proof.
        name: the name of the case in the proof.
    """
    explainer = _Explainer(options, name)

    def script(options: CheckOptions) -> Script:
        return case_script(name, pair, failure.recipe, failure.judgement.differences, options)

    if pair.twins.deployed:
        explainer.prove([lambda: script(options)])
        return explainer.explanation_of_deployed()
    case = WholeCase(pair, failure.recipe, explainer.budget)
    found = explainer.find_stage(case)
    if found is not None:
        explainer.locate(case, *found, script, failure.judgement.differences)
        explainer.find_branches(pair, failure.recipe)
        explainer.find_python_code(case, found[1], pair, failure.recipe, failure.judgement.differences)
    return explainer.explanation()


def explain_story(
    sides: LifecycleSides, failure: StoryFailure, options: CheckOptions, name: str
) -> Explanation:
    """Explain at which stage a lifecycle differs, within `options.explain_seconds`, and write a script.

    This does not leave out steps of the compiler. A lifecycle may differ because its code reads memory that
    it must not read, and leaving out steps of such code has aborted the process.

    Args:
        sides: the lifecycle's two sides.
        failure: the shortest story that differs.
        options: how the lifecycle is compiled, and the folder for a proof.
        name: the name of the lifecycle in the proof.
    """
    explainer = _Explainer(options, name)

    def script(options: CheckOptions) -> Script:
        return story_script(name, sides, failure.story, failure.differences, options)

    if sides.first.twins.deployed:
        explainer.prove([lambda: script(options)])
        return explainer.explanation_of_deployed()
    story = WholeStory(sides, failure.story, explainer.budget)
    found = explainer.find_stage(story)
    if found is not None:
        explainer.prove([lambda: script(found[1])])
        pair = sides.by_name.get(failure.story[-1].method, sides.first)
        recipe = random_recipe(pair.tree, options.batch[0], options.seed)
        explainer.find_branches(pair, recipe)
        explainer.find_python_code(story, found[1], pair, recipe, failure.differences)
    return explainer.explanation()


def explain_rejection(pair: Pair, broken: BrokenContract, options: CheckOptions, name: str) -> Explanation:
    """Explain at which stage compiled accepts what eager rejects, within `options.explain_seconds`.

    Args:
        pair: the case.
        broken: the inputs of a call, and what each side does with them.
        options: how the case is compiled, and the folder for a proof.
        name: the name of the case in the proof.
    """
    explainer = _Explainer(options, name)
    wrong, recipe, difference = broken.wrong, broken.recipe, broken.difference
    assert wrong is not None
    assert recipe is not None
    assert difference is not None

    def script(options: CheckOptions) -> Script:
        return case_script(name, pair, recipe, (difference,), options, wrong.tree)

    if pair.twins.deployed:
        explainer.prove([lambda: script(options)])
        return explainer.explanation_of_deployed()
    found = explainer.find_stage(RejectedInputs(pair, wrong, recipe, explainer.budget))
    if found is not None:
        explainer.prove([lambda: script(found[1])])
        explainer.find_branches(pair, recipe)
    return explainer.explanation()


def explain_draws(
    pair: Pair,
    compare: Callable[[Pair, CheckOptions], tuple[Difference, ...]],
    options: CheckOptions,
    name: str,
) -> Explanation:
    """Explain at which stage the distribution of a case's samples differs, within `options.explain_seconds`.

    Args:
        pair: the case.
        compare: compares the draws of a pair.
        options: how the case is compiled.
        name: the name of the case.
    """
    explainer = _Explainer(options, name)
    if pair.twins.deployed:
        return explainer.explanation_of_deployed()
    explainer.find_stage(Sampler(pair, compare, explainer.budget))
    return explainer.explanation()


class _Explainer:
    """Searches for parts of an explanation and collects them."""

    def __init__(self, options: CheckOptions, name: str) -> None:
        self.budget = Budget(options.explain_seconds)
        self._name = name
        self._begun = time.monotonic()
        self._found = Explanation()
        self._options = options

    def explanation(self) -> Explanation:
        """Return what has been found."""
        return dataclasses.replace(self._found, seconds=time.monotonic() - self._begun)

    def explanation_of_deployed(self) -> Explanation:
        """Return what has been found for a policy that its factory compiles, with a remark on the rest."""
        self._remark("stage and submodule are not searched for: the factory itself compiles the policy")
        return self.explanation()

    def find_stage(self, case: Subject) -> tuple[Stage, CheckOptions] | None:
        """Return the first stage that differs, and the options that compile up to it; None if not found."""
        options = self._try("the stage", lambda: self._reproducing_options(case))
        stage = self._try("the stage", lambda: first_stage(case, options)) if options else None
        if options is None or stage is None:
            return None
        self._note(stage=stage.name, agreed=stage.agreed)
        for name in stage.not_compiled:
            self._remark(f"{name} was not compared: the policy does not compile with the backend for it")
        return stage, up_to(options, stage.backend)

    def find_branches(self, pair: Pair, recipe: Recipe) -> None:
        """If the stage is dynamo, find the lines on which the policy asks whether it is being compiled."""
        if self._found.stage != STAGES["eager"]:
            return
        lines = self._try("a branch on compiling", lambda: compiling_branches(pair, recipe))
        if lines:
            asks = f"{some(lines)}, where the policy's own code asks whether it is being compiled"
            advice = f"let both branches compute the same, or compile what lies in neither ({some(lines)})"
            self._note(place=asks, lines=lines, advice=advice)

    def find_python_code(
        self,
        case: Subject,
        options: CheckOptions,
        pair: Pair,
        recipe: Recipe,
        differences: Sequence[Difference],
    ) -> None:
        """Find what in the policy's Python code makes compiled another program, in dynamo or AOTAutograd."""
        searches: dict[str, list[Callable[[], PythonCause | None]]] = {
            STAGES["eager"]: [
                lambda: foreign_numbers(pair, recipe, differences),
                lambda: constant_results(case, options, pair, recipe),
                lambda: dropped_guards(case, options),
            ],
            STAGES["aot_eager"]: [lambda: functions_in_graph(case, options, pair, recipe)],
        }
        for search in searches.get(self._found.stage, ()):
            found = self._try("the Python code at fault", search)
            if found is not None:
                self._note(place=found.place, lines=found.lines, advice=found.advice)
                return

    def _reproducing_options(self, case: Subject) -> CheckOptions:
        """Return options under which the case differs when it is compiled for its example alone.

        Dynamo remembers the sizes that it has compiled for, and makes sizes that have changed variables. A
        graph that is wrong for a single size may be right with variables, so static sizes are tried too.

        Raises:
            CannotCompare: if it does not differ.
        """
        for options in (self._options, dataclasses.replace(self._options, dynamic=False)):
            with contextlib.suppress(CannotCompare):
                if case.differences(options):
                    return options
        raise CannotCompare("compiled again, it agrees; the difference depends on earlier calls or compiles")

    def locate(
        self,
        case: WholeCase,
        stage: Stage,
        options: CheckOptions,
        whole: Callable[[CheckOptions], Script],
        differences: Sequence[Difference],
    ) -> None:
        """Find the submodule, the graph and the step that differ, and write a proof.

        The proof is a script of the graph, or the `whole` case if no single graph reproduces the difference.
        """
        graphs = self._try("the graph", lambda: capture_graphs(case, options, self.budget)) or []
        script = functools.partial(whole, options)
        if any(graph.takes_sizes for graph in graphs):
            options = dataclasses.replace(options, dynamic=True)
        place = self._try("the submodule", lambda: find_module(case, options, self.budget))
        if place is not None:
            self._note(place=str(place))
        graph = self._try("the graph", lambda: find_graph(graphs, options)) if graphs else None
        if graph is not None:
            self._note(lines=graph.lines)
        of_graph = [lambda: self._graph_script(graph, options)] if graph else []
        self.prove([*of_graph, script])
        self._narrow(graph.part if graph else case, stage, options)
        if PARTITIONER in self._found.causes:
            self._advise_assignment(case, options, [d.path for d in differences])

    def _graph_script(self, graph: Graph, options: CheckOptions) -> Script:
        return graph_script(self._name, graph, graph.part.differences(options), options)

    def prove(self, scripts: Sequence[Callable[[], Script]]) -> None:
        """Write the first of these scripts that reproduces the difference, if a proof is asked for."""
        if self._options.proof is None:
            return
        parent, remarks = pathlib.Path(self._options.proof), self._found.remarks
        for script in scripts:
            limit_s = max(LEAST_PROOF_S, self.budget.left)
            write = functools.partial(self._write, parent, script, limit_s)
            proof = self._try("a script", write, done="written")
            if proof is None:
                continue
            folder = shortest(str(proof.folder))
            self._note(proof=folder, confirmed=proof.confirmed)
            if proof.confirmed:
                # Remarks on earlier scripts no longer matter.
                self._note(remarks=remarks)
                return
            self._remark(f"the script in {folder} does not reproduce the difference: {proof.output}")

    def _write(self, parent: pathlib.Path, script: Callable[[], Script], limit_s: float) -> Proof:
        return write_proof(parent, self._name, script(), limit_s=limit_s)

    def _narrow(self, subject: Subject, stage: Stage, options: CheckOptions) -> None:
        """Find the steps of the stage without which the difference vanishes."""
        causes = self._try("the step", lambda: narrow(subject, stage, options)) or []
        texts = tuple(c.text + (f" ({', '.join(c.lines)})" if c.lines else "") for c in causes)
        remedies = [cause.options for cause in causes if cause.options]
        self._note(causes=texts, remedy=remedies[0] if remedies else None)
        if not causes and stage.name in ("inductor", "decompositions and partitioner"):
            over = " before the time was up" if self.budget.left <= 0 else ""
            self._remark(f"no step of the stage was found without which the difference vanishes{over}")

    def _advise_assignment(self, case: WholeCase, options: CheckOptions, paths: Sequence[str]) -> None:
        """Name the lines that write to buffers in place, and advise to assign if that was found to agree."""
        writes = self._try("a write in place", lambda: find_writes(case))
        if not writes:
            return
        lines = tuple(dict.fromkeys(write.line for write in writes))
        self._note(lines=lines)
        if self._try("a remedy", lambda: assigning_agrees(case, options, paths)):
            names = some(dict.fromkeys(write.buffer for write in writes))
            self._note(
                advice=f"assign a new tensor to {names} instead of writing to it in place ({some(lines)}): "
                f"tried, this example then agrees"
            )

    def _try(self, what: str, find: Callable[[], Found], *, done: str = "found") -> Found | None:
        """Return what `find` returns; None, with a remark, if it raises or runs out of time."""
        try:
            return find()
        except OutOfTime:
            self._remark(f"{what} was not {done} within explain_seconds={self._options.explain_seconds:g}")
        except (CannotCompare, CantWrite) as error:
            self._remark(f"{what} could not be {done}: {error}")
        except (Exception, *EXITS) as error:
            # The report must show the difference even if explaining it raises.
            self._remark(f"{what} could not be {done}: the attempt raised {raised_text(error)}")
        return None

    def _note(self, **values: Any) -> None:
        self._found = dataclasses.replace(self._found, **values)

    def _remark(self, sentence: str) -> None:
        if sentence not in self._found.remarks:
            self._note(remarks=(*self._found.remarks, sentence))
