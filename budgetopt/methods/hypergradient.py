"""Gradient of the validation loss of a trained network to the samples that it was trained on (BCDC eq. 8 and 9).

∇_S L_val = (∂θ*/∂S)ᵀ ∇_θ L_val, θ* the weights that descent on L(θ, S) leads to; the direct term of eq. 8 is zero, as
real samples do not depend on synthetic ones. Two ways: back through the last steps of the descent (truncated unrolling,
Shaban et al., AISTATS 2019), or from ∇_θ L(θ*, S) = 0 by the implicit function theorem (eq. 9; Lorraine et al., AISTATS
2020). Hessians appear only in products with a vector, by a second backward pass. Pure functions: no argument changes.
Weights are flat, (P,); samples have any shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

InnerLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (weights, samples) → scalar, twice differentiable
OuterLoss = Callable[[torch.Tensor], torch.Tensor]  # weights → scalar
Product = Callable[[torch.Tensor], torch.Tensor]  # vector → A · vector, A symmetric
Solver = Callable[[Product, torch.Tensor], torch.Tensor]  # (A, b) → about A⁻¹ b

CONVERGED = 1e-6  # ‖residual‖ / ‖b‖ that ends conjugate gradients


def descent(losses: Sequence[InnerLoss], weights: torch.Tensor, samples: torch.Tensor, lr: float) -> torch.Tensor:
    """Weights after a step θ − lr · ∇_θ L(θ, S) on each of `losses`, without a graph."""
    samples = samples.detach()
    for loss in losses:
        at = weights.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(at, samples), at)
        weights = weights.detach() - lr * slope
    return weights


def unrolled(
    losses: Sequence[InnerLoss], outer: OuterLoss, weights: torch.Tensor, samples: torch.Tensor, lr: float
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """→ L_val after the steps of `descent`, its gradient to the samples through all of them, the weights after them.

    Memory grows with the number of steps: the activations of each are kept.
    """
    samples, end = samples.detach().requires_grad_(), weights.detach().requires_grad_()
    for loss in losses:
        (slope,) = torch.autograd.grad(loss(end, samples), end, create_graph=True)
        end = end - lr * slope
    value = outer(end)
    (gradient,) = torch.autograd.grad(value, samples)
    return float(value.detach()), gradient, end.detach()


def implicit(
    loss: InnerLoss, outer: OuterLoss, weights: torch.Tensor, samples: torch.Tensor, damping: float, solver: Solver
) -> tuple[float, torch.Tensor]:
    """→ L_val, −∇²_Sθ L · (∇²_θθ L + damping · I)⁻¹ ∇_θ L_val. Exact at ∇_θ L = 0 without damping."""
    samples, weights = samples.detach().requires_grad_(), weights.detach().requires_grad_()
    value = outer(weights)
    (wanted,) = torch.autograd.grad(value, weights)
    (slope,) = torch.autograd.grad(loss(weights, samples), weights, create_graph=True)

    def product(vector: torch.Tensor) -> torch.Tensor:
        (image,) = torch.autograd.grad(slope, weights, vector, retain_graph=True)
        return image + damping * vector

    (gradient,) = torch.autograd.grad(slope, samples, -solver(product, wanted))
    return float(value.detach()), gradient


def conjugate_gradient(product: Product, b: torch.Tensor, terms: int) -> torch.Tensor:
    """A⁻¹ b after at most `terms` products, from zero. The Hessian of a network has directions of negative curvature,
    where the method is not defined: it ends before the first of them, and returns b where b itself is one."""
    x, residual, direction = torch.zeros_like(b), b, b
    first = square = b @ b
    for _ in range(terms):
        if square <= CONVERGED**2 * first:
            break
        image = product(direction)
        curvature = direction @ image
        if curvature <= 0:
            return x if x.any() else b
        x = x + square / curvature * direction
        residual = residual - square / curvature * image
        before, square = square, residual @ residual
        direction = residual + square / before * direction
    return x


def neumann(product: Product, b: torch.Tensor, terms: int, scale: float) -> torch.Tensor:
    """A⁻¹ b as scale · Σ_{j < terms} (I − scale · A)^j b, from `terms` − 1 products. Converges where all eigenvalues of
    A lie between 0 and 2 / scale. With the step length of the descent as `scale`, at its end, `terms` terms are what
    `unrolled` gives through so many steps."""
    total = term = b
    for _ in range(terms - 1):
        term = term - scale * product(term)
        total = total + term
    return scale * total
