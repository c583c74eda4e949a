"""What is optimised: latent values → quantizer → inverse transform → samples in raw units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from budgetopt.allocation import Allocation
from budgetopt.checkpoint import State
from budgetopt.data.dataset import DataSpec
from budgetopt.errors import OverBudget, PackedFileError, TrialFailure
from budgetopt.fitting import largest_fitting
from budgetopt.packing import PackedSet, SoftLabels, pack
from budgetopt.packing.layout import first_of_each
from budgetopt.quantizers import build as build_quantizer
from budgetopt.representation.rate import CodedSize
from budgetopt.representation.rdoq import optimised
from budgetopt.teacher import Teacher
from budgetopt.transforms import build as build_transform


@dataclass(frozen=True, eq=False)
class InitialSet:
    """x: (n, c, h, w) or (n, f) float32 in raw units, in class order and, inside a class, most useful first;
    counts: samples of each class. soft: their labels, of a set that has some: a teacher that sees decoded samples knows
    less than the one that labelled them."""

    x: np.ndarray
    counts: tuple[int, ...]
    soft: SoftLabels | None = None

    def first(self, most: int) -> InitialSet:
        """The first `most` samples of each class."""
        return self.taking(tuple(min(c, most) for c in self.counts))

    def taking(self, counts: tuple[int, ...]) -> InitialSet:
        """The first so many of each class."""
        starts = np.cumsum(self.counts) - self.counts
        rows = np.concatenate([np.arange(s, s + c) for s, c in zip(starts, counts, strict=True)])
        return InitialSet(self.x[rows], counts, None if self.soft is None else self.soft[rows])


class Representation(nn.Module):
    """The set being made. `latent` (n, K) are the quantizer's free values, for most families the coded values, in units
    of the initial set's standard deviation, so that one learning rate fits every dataset and transform."""

    label_logits: nn.Parameter | None  # (n, C), where labels are learned

    def __init__(
        self,
        initial: InitialSet,
        allocation: Allocation,
        spec: DataSpec,
        protocol: int | bytes,
        device: torch.device,
        generator: torch.Generator | None = None,
        teacher: Teacher | None = None,
        budget: int | None = None,
    ) -> None:
        super().__init__()
        x = torch.from_numpy(np.ascontiguousarray(initial.x, np.float32)).to(device)
        self.initial, self.counts, self.spec, self.protocol = initial, initial.counts, spec, protocol
        self.labels = torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts)).to(device)
        self.transform = build_transform(allocation.transform, allocation.transform_options)
        self.transform.check_shape(spec.shape)
        self.transform.fit(x)
        coded = self.transform.forward(x)
        self.unit = float(coded.std(correction=0)) or 1.0
        self.quantizer = build_quantizer(
            allocation.quantizer, allocation.levels, allocation.clipping, allocation.quantizer_options
        )
        self.quantizer.check_transform(allocation.transform, spec.shape)
        if generator is not None:
            self.quantizer.generator = generator
        self.quantizer.budget = budget
        self.quantizer.fit(coded, self.labels, self.transform.layout)
        self.quantizer.to(device)
        if allocation.rdoq:
            coded = optimised(coded, self.labels, self.quantizer, self.transform.layout, self.counts, allocation.rdoq)
        self.latent = nn.Parameter(self.quantizer.free(coded, self.labels) / self.unit)
        self.label_bits, self._teacher = allocation.label_bits, teacher
        same = initial.soft is not None and initial.soft.bits == allocation.label_bits
        self._kept = initial.soft if same else None
        self._temperature = allocation.label_temperature
        self._lost = (
            x - self.transform.inverse(coded) if self.label_bits else None
        )  # before any quantization of latents
        self.register_parameter("label_logits", None)
        self.rate_weight = allocation.rate_weight
        self._coded_size = CodedSize(self.quantizer, self.transform.layout, self.counts)
        if self.rate_weight:  # a family without a rate is told at once, not after hours
            self._coded_size.refresh(coded, self.labels)

    def get_extra_state(self) -> State:
        """What training changes beside the parameters: a part of `state_dict`."""
        return {"noise": self.quantizer.generator.get_state(), "rate": self._coded_size.state()}

    def set_extra_state(self, state: State) -> None:
        self.quantizer.generator.set_state(state["noise"])
        self._coded_size.restore(state["rate"], self.latent.device)

    def forward(self) -> torch.Tensor:
        """Samples in raw units, differentiable with respect to the latent values and the quantizer's parameters."""
        return self.transform.inverse(self.quantizer(self.coded(), self.labels))

    def coded(self) -> torch.Tensor:
        """(n, K) values before quantization, differentiable with respect to the latent ones."""
        return self.quantizer.coded(self.latent * self.unit, self.labels)

    @torch.no_grad()
    def set_coded(self, x: torch.Tensor) -> None:
        """Go on from other coded values, (n, K)."""
        self.latent.copy_(self.quantizer.free(x, self.labels) / self.unit)

    def penalty(self) -> torch.Tensor:
        """What the quantizer adds to the loss of any method."""
        return self.quantizer.penalty(self.coded(), self.labels)

    def rate(self) -> torch.Tensor:
        """Estimated size of the coded values in bits, differentiable with respect to the latent values. Raises
        `InputError` for quantizers whose symbols are not levels of single values."""
        return self._coded_size.bits(self.coded(), self.labels)

    def soft_labels(self) -> SoftLabels | None:
        """The learned labels; else those that the initial set has; else what the teacher says of all samples *before*
        quantization and of what the transform left out: at few levels it takes decoded ones for other classes
        (Fashion-MNIST at 2 levels: 73 % right, 93 % before). Without a teacher the class is certain, which makes the
        shortest file. None where labels are hard."""
        if self._lost is None:
            return None
        if self.label_logits is not None:
            learned = torch.softmax(self.label_logits.detach().double(), 1)
            return SoftLabels.nearest(learned.cpu().numpy(), self.label_bits)
        if self._kept is not None:
            return self._kept
        if self._teacher is None:
            return SoftLabels.nearest(np.eye(len(self.counts))[self.labels.cpu().numpy()], self.label_bits)
        return SoftLabels.nearest(self._taught(self._teacher, self._lost), self.label_bits)

    def _taught(self, teacher: Teacher, lost: torch.Tensor) -> np.ndarray:
        """(n, C) float64 probabilities."""
        return teacher.probabilities(self.transform.inverse(self.coded().detach()) + lost, self._temperature)

    def learn_labels(self, logits: torch.Tensor) -> nn.Parameter:
        """From now on soft labels are the softmax of a parameter. It starts from the labels of the initial set, else
        from what the teacher says, else from `logits` (n, C). Raises `ValueError` where labels are hard."""
        if self._lost is None:
            raise ValueError("labels are hard: label_bits is 0")
        taught = None if self._kept is None else self._kept.targets()
        if taught is None and self._teacher is not None:
            taught = self._taught(self._teacher, self._lost)
        if taught is not None:
            logits = torch.from_numpy(np.log(np.maximum(taught, np.finfo(np.float32).tiny)))
        self.label_logits = nn.Parameter(logits.detach().to(self.latent.device, torch.float32, copy=True))
        return self.label_logits

    def targets(self) -> torch.Tensor:
        """What a receiver trains towards: (n,) classes, or (n, C) float32 probabilities as the file holds them. Their
        gradient to labels that are learned goes straight through the quantization."""
        soft = self.soft_labels()
        if soft is None:
            return self.labels
        stored = torch.from_numpy(soft.targets()).to(self.labels.device)
        if self.label_logits is None:
            return stored
        learned = torch.softmax(self.label_logits, 1)
        return stored + (learned - learned.detach())

    def packed(self, most: int | None = None, soft: SoftLabels | None = None) -> PackedSet:
        """The set as the file would hold it now, or the first `most` samples of each class. `soft`: the soft labels of
        all samples, where they are known already. Raises `TrialFailure` where a value is NaN or infinite."""
        if not torch.isfinite(self.latent).all() or not all(torch.isfinite(p).all() for p in self.parameters()):
            raise TrialFailure("distillation diverged: the synthetic samples are not finite")
        most = max(self.counts) if most is None else most
        counts, keep = tuple(min(c, most) for c in self.counts), first_of_each(self.counts, most)
        rows = torch.from_numpy(keep).to(self.labels.device)
        soft = soft or self.soft_labels()
        symbols, side = self.quantizer.encode(self.coded().detach()[rows], self.labels[rows])
        packed = PackedSet(
            symbols=symbols,
            shape=self.spec.shape,
            counts=counts,
            dequantizer=side,
            inverse=self.transform.side_information(),
            mean=self.spec.mean,
            std=self.spec.std,
            protocol=self.protocol,
            soft=None if soft is None else soft[keep],
            preparation=self.spec.preparation,
        )
        try:
            packed.check_exponents()
        except PackedFileError as error:
            raise TrialFailure(f"distillation diverged: {error}") from None
        return packed

    def fit_to_budget(self, budget: int | None) -> bytes:
        """Pack within `budget` bytes, dropping the least useful samples of the largest classes where needed.

        Samples are most useful first in their class, so every class keeps a prefix of min(count, m). Raises
        `OverBudget` if not even one sample a class fits.
        """
        soft = self.soft_labels()
        data = pack(self.packed(soft=soft))
        if budget is None or len(data) <= budget:
            return data
        found: dict[int, bytes] = {}

        def size(most: int) -> int:
            found[most] = pack(self.packed(most, soft))
            return len(found[most])

        most = largest_fitting(size, budget, 1, max(self.counts) - 1)
        if most is None:
            raise OverBudget(f"one sample a class takes {len(found[1])} bytes, the budget is {budget}")
        return found[most]
