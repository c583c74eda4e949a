"""What can still be done to a set once its allocation is chosen: PTQ's refinement, and fine-tuning with real data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from budgetopt import declarative, evaluation, methods, networks, objective, quantizers, seeding
from budgetopt.allocation import Allocation
from budgetopt.data.dataset import Dataset, Split
from budgetopt.errors import InputError, TrialFailure
from budgetopt.given import Given
from budgetopt.methods.base import TrainingData
from budgetopt.methods.coreset import Refinement
from budgetopt.networks import Network
from budgetopt.objective import CoresetObjective, Objective
from budgetopt.options import canonical
from budgetopt.representation import Representation

REFINEMENTS = ("none", "before", "after", "both")
UNGROUPED = 0  # groups of the patch quantizer: every patch has its own levels


@dataclass(frozen=True, eq=False)
class _Matched(TrainingData):
    """The features to match are those of one network instead of random ones."""

    network: Network

    def random_network(self, generator: torch.Generator) -> Network:
        return self.network


def refine(
    given: Given, allocation: Allocation, when: str, steps: int, dataset: Dataset | None, network: Network | None
) -> Representation:
    """Samples x^ft whose quantized features are those of the originals (PTQ eq. 8–10), in random networks or `network`.

    `before`: under the quantizer without groups, which is then fitted anew to them; `after`: under the quantizer of the
    file; `both`: the one, then the other, towards the features of the originals both times.
    """
    data = _training_data(given, dataset, network)
    recipe = CoresetObjective(method="coreset", steps=steps)
    final = given.representation(allocation).train()
    generator = seeding.generator("refinement", given.seed, allocation.key)
    original = Refinement(recipe, data, final, generator).original  # before they change
    if when in ("before", "both"):
        first = given.representation(_ungrouped(allocation)).train()
        _run(Refinement(recipe, data, first, generator), first, steps)
        changed = final.transform.forward(first.transform.inverse(first.coded())).detach()
        final.quantizer.fit(changed, final.labels, final.transform.layout)
        final.set_coded(changed)
    if when in ("after", "both"):
        _run(Refinement(recipe, data, final, generator, original=original), final, steps)
    return final


def finetune(given: Given, allocation: Allocation, name: str, recipe: Objective, dataset: Dataset) -> Representation:
    """Goes on with a method and the quantizer in its loop (the core of BCDC)."""
    representation = given.representation(replace(allocation, objective=name)).train()
    data = _training_data(given, dataset, None)
    generator = seeding.generator("fine-tuning", given.seed, allocation.key)
    _run(methods.build(recipe, data, representation, generator), representation, recipe.all_steps)
    return representation


def resolve(method: str, steps: int | None) -> tuple[str, Objective]:
    """An objective by name or path, with `steps` in place of its own. Raises `InputError` for one without steps."""
    name, recipe = objective.resolve(method)
    if steps is not None:
        recipe = declarative.validate(recipe.model_dump() | {"steps": steps}, "--steps", type(recipe))
    if recipe.steps == 0:
        raise InputError(f"{method} has no steps to go on with: give --steps, or another method")
    return name, recipe


def trained_network(given: Given, dataset: Dataset) -> Network:
    """A network trained on the train part by the protocol of the set."""
    spec, train = dataset.spec, dataset.train
    real = evaluation.TrainingSet(train.x, train.y, spec.classes, spec.mean, spec.std)
    seed = seeding.derive("matched network", given.seed)
    return evaluation.train_network(real, given.protocol, seed, evaluation.default_device()).requires_grad_(False)


def read_network(path: Path, given: Given) -> Network:
    """A `state_dict` of the protocol's network, as torch saves it. Raises `InputError` in one line."""
    protocol = given.protocol
    network = networks.build(
        protocol.network, given.spec.shape, given.spec.classes, protocol.width, torch.Generator().manual_seed(0)
    )
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # damaged, hostile or simply another network
        reason = error.strerror if isinstance(error, OSError) else "it is no state_dict of it"
        raise InputError(
            f"cannot read {str(path)!r} as weights of {protocol.network}, width {protocol.width}: {reason}"
        ) from None
    if not all(torch.isfinite(p).all() for p in network.parameters()):
        raise InputError(f"{path}: the weights are not finite")
    return network.to(evaluation.default_device()).requires_grad_(False)


def _training_data(given: Given, dataset: Dataset | None, network: Network | None) -> TrainingData:
    train = Split(given.initial.x, given.labels) if dataset is None else dataset.train
    if network is None:
        return TrainingData(train, given.spec, given.protocol, evaluation.default_device())
    return _Matched(train, given.spec, given.protocol, evaluation.default_device(), network)


def _run(method: methods.Method, representation: Representation, steps: int) -> None:
    with evaluation.one_thread(representation.latent.device):  # rounding depends on how many there are
        for done in range(1, steps + 1):
            representation.quantizer.progress = done / steps
            loss = method.step()
            if not math.isfinite(loss):
                raise TrialFailure(f"diverged: the loss is {loss} at step {done}")


def _ungrouped(allocation: Allocation) -> Allocation:
    schema = quantizers.QUANTIZERS[allocation.quantizer].options
    if "groups" not in schema:
        return allocation
    options = dict(allocation.quantizer_options) | {"groups": UNGROUPED}
    return replace(allocation, quantizer_options=canonical(schema, options, allocation.quantizer))
