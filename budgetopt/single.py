"""One allocation by hand, in this process, without Ray and Optuna: for debugging, and where there is only torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from budgetopt import (
    data,
    declarative,
    evaluation,
    initial,
    networks,
    objective,
    options,
    protocol,
    quantizers,
    teacher,
    transforms,
    trial,
)
from budgetopt.allocation import TEMPERATURE, Allocation
from budgetopt.budget import Budget
from budgetopt.data.dataset import Dataset
from budgetopt.errors import InputError
from budgetopt.methods.base import TrainingData
from budgetopt.methods.selection import LEARNED, check_shape, learned


def allocation(
    method: str,
    selection: str,
    ipc: int,
    transform: str,
    quantizer: str,
    levels: int | None,
    clipping: str | None,
    label_bits: int = 0,
    rate_weight: float = 0.0,
    balance: str = "equal",
    label_temperature: float = TEMPERATURE,
    rdoq: float = 0.0,
) -> Allocation:
    """Checked values as an allocation. transform, quantizer: a family, with options as in `dct:keep=0.25`; `clipping`
    None is the quantizer's first, `levels` None the only number it has, else 2."""
    schemas = {name: q.options for name, q in quantizers.QUANTIZERS.items()}
    quantizer, quantizer_options = options.parse(quantizer, schemas, "quantizer")
    schemas = {name: t.options for name, t in transforms.TRANSFORMS.items()}
    transform, transform_options = options.parse(transform, schemas, "transform")
    family = quantizers.QUANTIZERS[quantizer]
    clipping = clipping or family.clippings[0]
    levels = levels or family.fixed_levels or 2
    family.check_levels(levels)
    family.check_clipping(clipping)
    return Allocation(
        Path(method).stem,
        selection,
        ipc,
        transform,
        quantizer,
        levels,
        clipping,
        transform_options,
        quantizer_options,
        label_bits,
        rate_weight,
        balance,
        label_temperature,
        rdoq,
    )


def run(
    dataset: str,
    method: str,
    allocation: Allocation,
    budget: str | None,
    steps: int | None,
    protocol_name: str | None,
    seed: int,
    init: Path | None,
    data_root: Path | None,
    label: str | None = None,
    resize: str | None = None,
    spectrogram: str | None = None,
) -> Iterator[trial.RungReport]:
    """Reports of each rung. Target embeddings are made in every step where they can be: a bank pays for many trials,
    not for one."""
    name, chosen = objective.resolve(method)
    if steps is not None:
        chosen = declarative.validate(chosen.model_dump() | {"steps": steps}, "--steps", type(chosen))
    if seed < 0:
        raise InputError(f"the seed must not be negative, got {seed}")
    source = data.open_source(dataset, data_root, label, resize, spectrogram)
    recipe = protocol.resolve(protocol_name or source.protocol)
    limit = None if budget is None else Budget.parse(budget)
    if limit is not None:
        print(f"budget: {limit}")
    prepared = Dataset.prepare(source, seed)
    for note in prepared.source.notes:
        print(note, flush=True)
    networks.check_shape(recipe.network, prepared.spec.shape)
    protocol.check_augmentation(recipe.augment, prepared.spec.shape)
    objective.check_augmentation(name, chosen, prepared.spec.shape)
    context = trial.TrialContext(
        train=prepared.train,
        val=prepared.val,
        spec=prepared.spec,
        protocol=recipe,
        objectives={name: chosen},
        budget=limit.bytes if limit else None,
        seed=seed,
        init=None if init is None else initial.read(init, prepared.spec),
    )
    device = evaluation.default_device()
    material = TrainingData(prepared.train, prepared.spec, recipe, device)
    if init is None and allocation.selection in LEARNED:
        check_shape(allocation.selection, prepared.spec.shape)
        print(f"training a network for the selection: {allocation.selection}", flush=True)
        context = replace(context, learned=learned([allocation.selection], material, seed, None))
    if allocation.label_bits:
        print(f"training the teacher of the soft labels: {teacher.STEPS * recipe.steps} steps", flush=True)
        context = replace(context, teacher=teacher.train(material, seed))
    return trial.run(context, allocation, device)
