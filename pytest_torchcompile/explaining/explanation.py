"""Why a case differs: the stage of the compiler, what in it, the submodule, and a script that shows it.

All of it shares one budget of seconds. What is found by the time it is up is told, and so is what could
not be found, because a user has to know whether nothing was there or nothing was looked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pytest_torchcompile.checking.compiling_branches import compiling_branches
from pytest_torchcompile.checking.pair import Pair
from pytest_torchcompile.checking.trial import Failure
from pytest_torchcompile.explaining.graph_script import graph_script
from pytest_torchcompile.explaining.place import Graph, captured, find_graph, find_module
from pytest_torchcompile.explaining.policy_script import case_script, story_script
from pytest_torchcompile.explaining.proof import CantWrite, Proof, Script, write_proof
from pytest_torchcompile.explaining.stages import LADDER, Stage, first_stage, narrow, up_to
from pytest_torchcompile.explaining.subjects import (
    Budget,
    CantTell,
    OutOfTime,
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
from pytest_torchcompile.texts import raised_text, shortest, some

Found = TypeVar("Found")

LEAST_PROOF_S = 30.0
"""A script may take so long, however little of the budget is left: it imports torch and compiles."""


def explain(pair: Pair, failure: Failure, options: CheckOptions, name: str) -> Explanation:
    """Why `failure` differs, as far as `options.explain_seconds` allow.

    Args:
        pair: the case.
        failure: the example that differs.
        options: how it is compiled, and where a proof goes.
        name: names the case in the proof.
    """
    explaining = _Explaining(options, name)

    def script(options: CheckOptions) -> Script:
        return case_script(name, pair, failure.recipe, failure.judgement.differences, options)

    if pair.twins.deployed:
        explaining.prove([lambda: script(options)])
        return explaining.of_what_comes_compiled()
    case = WholeCase(pair, failure.recipe, explaining.budget)
    found = explaining.find_stage(case)
    if found is not None:
        explaining.locate(case, *found, script)
        explaining.ask_for_branches(pair, failure.recipe)
    return explaining.explanation()


def explain_story(
    sides: LifecycleSides, failure: StoryFailure, options: CheckOptions, name: str
) -> Explanation:
    """The stage at which a lifecycle differs, if `options.explain_seconds` allow, and a script that shows it.

    No steps of it are left out: code that reads what it should not, for which a lifecycle differed, was
    seen to abort the process on the way.

    Args:
        sides: the lifecycle's two sides.
        failure: the shortest story that differs.
        options: how it is compiled, and where a proof goes.
        name: names the lifecycle in the proof.
    """
    explaining = _Explaining(options, name)

    def script(options: CheckOptions) -> Script:
        return story_script(name, sides, failure.story, failure.differences, options)

    if sides.first.twins.deployed:
        explaining.prove([lambda: script(options)])
        return explaining.of_what_comes_compiled()
    found = explaining.find_stage(WholeStory(sides, failure.story, explaining.budget))
    if found is not None:
        explaining.prove([lambda: script(found[1])])
        pair = sides.by_name.get(failure.story[-1].method, sides.first)
        explaining.ask_for_branches(pair, random_recipe(pair.tree, options.batch[0], options.seed))
    return explaining.explanation()


def explain_draws(
    pair: Pair,
    compare: Callable[[Pair, CheckOptions], tuple[Difference, ...]],
    options: CheckOptions,
    name: str,
) -> Explanation:
    """The stage from which on a case does not draw what eager draws, if `options.explain_seconds` allow.

    Args:
        pair: the case.
        compare: compares the draws of a pair.
        options: how it is compiled.
        name: names the case.
    """
    explaining = _Explaining(options, name)
    if pair.twins.deployed:
        return explaining.of_what_comes_compiled()
    explaining.find_stage(Sampler(pair, compare, explaining.budget))
    return explaining.explanation()


class _Explaining:
    """An explanation in the making."""

    def __init__(self, options: CheckOptions, name: str) -> None:
        self.budget = Budget(options.explain_seconds)
        self._name = name
        self._begun = time.monotonic()
        self._found = Explanation()
        self._options = options

    def explanation(self) -> Explanation:
        """What has been found."""
        return dataclasses.replace(self._found, seconds=time.monotonic() - self._begun)

    def of_what_comes_compiled(self) -> Explanation:
        """What has been found, and why no more."""
        self._remark("stage and submodule are not looked for: it comes compiled, backend and all")
        return self.explanation()

    def find_stage(self, case: Subject) -> tuple[Stage, CheckOptions] | None:
        """The first stage that differs, and the options that compile up to it; None if it can't be told."""
        options = self._try("the stage", lambda: self._reproducing(case))
        stage = self._try("the stage", lambda: first_stage(case, options)) if options else None
        if options is None or stage is None:
            return None
        self._note(stage=stage.name, agreed=stage.agreed)
        for name in stage.untold:
            self._remark(f"{name} could not be judged: it doesn't compile with what ends there")
        return stage, up_to(options, stage.backend)

    def ask_for_branches(self, pair: Pair, recipe: Recipe) -> None:
        """Name the lines on which the policy asks whether it is being compiled, if dynamo is the stage."""
        if self._found.stage != LADDER["eager"]:
            return
        lines = self._try("a branch on compiling", lambda: compiling_branches(pair, recipe))
        if lines:
            asks = f"{some(lines)}, where the policy's own code asks whether it is being compiled"
            self._note(place=asks, lines=lines)

    def _reproducing(self, case: Subject) -> CheckOptions:
        """The options under which the case differs on code compiled for its example alone.

        Dynamo remembers for which sizes it has compiled and takes those for variables, which a graph that
        is wrong for one size does not survive.
        """
        for options in (self._options, dataclasses.replace(self._options, dynamic=False)):
            with contextlib.suppress(CantTell):
                if case.differences(options):
                    return options
        raise CantTell(
            "compiled anew, it agrees; the difference depends on what was called or compiled before"
        )

    def locate(
        self,
        case: WholeCase,
        stage: Stage,
        options: CheckOptions,
        whole: Callable[[CheckOptions], Script],
    ) -> None:
        """Look for the submodule, the graph and the step at fault, compiling up to the stage.

        The proof is of the graph, or of the `whole` case where no single graph shows the difference.
        """
        graphs = self._try("the graph", lambda: captured(case, options, self.budget)) or []
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

    def _graph_script(self, graph: Graph, options: CheckOptions) -> Script:
        return graph_script(self._name, graph, graph.part.differences(options), options)

    def prove(self, scripts: Sequence[Callable[[], Script]]) -> None:
        """Write the first of these scripts that shows the difference, if a proof is asked for."""
        if self._options.proof is None:
            return
        parent, remarks = pathlib.Path(self._options.proof), self._found.remarks
        for script in scripts:
            limit_s = max(LEAST_PROOF_S, self.budget.left)
            write = functools.partial(self._written, parent, script, limit_s)
            proof = self._try("a script", write)
            if proof is None:
                continue
            folder = shortest(str(proof.folder))
            self._note(proof=folder, confirmed=proof.confirmed)
            if proof.confirmed:
                # What kept an earlier one from it is nobody's concern now.
                self._note(remarks=remarks)
                return
            self._remark(f"the script in {folder} does not show the difference: {proof.said}")

    def _written(self, parent: pathlib.Path, script: Callable[[], Script], limit_s: float) -> Proof:
        return write_proof(parent, self._name, script(), limit_s=limit_s)

    def _narrow(self, subject: Subject, stage: Stage, options: CheckOptions) -> None:
        """Look for the step at fault, compiling up to the stage."""
        causes = self._try("the step", lambda: narrow(subject, stage, options)) or []
        texts = tuple(c.text + (f" ({', '.join(c.lines)})" if c.lines else "") for c in causes)
        remedies = [cause.options for cause in causes if cause.options]
        self._note(causes=texts, remedy=remedies[0] if remedies else None)
        if not causes and stage.name in ("inductor", "decompositions and partitioner"):
            over = ", and the time is up" if self.budget.left <= 0 else ""
            self._remark(f"no single step of the stage was found to be at fault{over}")

    def _try(self, what: str, find: Callable[[], Found]) -> Found | None:
        """What `find` finds; None, with a remark, if it can't or there is no time."""
        try:
            return find()
        except OutOfTime:
            self._remark(f"{what} was not found within explain_seconds={self._options.explain_seconds:g}")
        except (CantTell, CantWrite) as error:
            self._remark(f"{what} can't be had: {error}")
        except (Exception, *EXITS) as error:
            # The difference has been found; that it can't be explained must not take its place.
            self._remark(f"{what} can't be had: looking for it raised {raised_text(error)}")
        return None

    def _note(self, **values: Any) -> None:
        self._found = dataclasses.replace(self._found, **values)

    def _remark(self, sentence: str) -> None:
        if sentence not in self._found.remarks:
            self._note(remarks=(*self._found.remarks, sentence))
