"""TorchRL: modules that read from a TensorDict and write to it."""

import pytest
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.modules import ActorValueOperator, ProbabilisticActor, TanhNormal, ValueOperator

from pytest_torchcompile import Box, Wrapped, register_output


def tensordict(tensors):
    return TensorDict(tensors, batch_size=tensors["observation"].shape[:1])


OBSERVATION = Wrapped({"observation": Box((8,))}, tensordict)

# Not the lifecycle: under autocast the log-probability is bfloat16 in eager and float32 once compiled.
PHASES = ("rollout", "update")


def actor(in_key, features):
    net = nn.Sequential(nn.Linear(features, 32), nn.Tanh(), nn.Linear(32, 6), NormalParamExtractor())
    return ProbabilisticActor(
        TensorDictModule(net, in_keys=[in_key], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        return_log_prob=True,
    )


@pytest.mark.compiled_equivalence(observation=OBSERVATION, phases=PHASES)
def test_probabilistic_actor():
    return actor("observation", 8)


@pytest.mark.compiled_equivalence(observation=OBSERVATION, phases=PHASES)
def test_actor_value_operator():
    body = nn.Sequential(nn.Linear(8, 32), nn.Tanh())
    return ActorValueOperator(
        TensorDictModule(body, in_keys=["observation"], out_keys=["hidden"]),
        actor("hidden", 32),
        ValueOperator(nn.Linear(32, 1), in_keys=["hidden"]),
    )


# Compiled, TorchRL builds TanhNormal from other transforms than in eager; what counts is this.
register_output(TanhNormal, lambda d: {"loc": d.loc, "scale": d.scale, "mode": d.deterministic_sample})


def distribution(model, tensordict):
    return model.get_dist(tensordict)


@pytest.mark.compiled_equivalence(observation=OBSERVATION, methods=distribution)
def test_its_distribution():
    return actor("observation", 8)
