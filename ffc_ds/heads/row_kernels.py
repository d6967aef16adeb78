"""What is done to a block of class rows between the matrix products: one pass over memory each, once it is compiled.

In place and without temporaries of the size of a block, because they run uncompiled as well. `scratch` is memory for
the intermediate result, of any content; without it new memory is taken, of which nothing is left when it is compiled.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ffc_ds.heads.workspace import Workspace

CUT = -(1 << 16)  # the bits of an fp32 number that bf16 has
EPSILON = 1e-8  # of AdamW

Words = tuple[Tensor, Tensor]  # int32 [b, 1] of rows and [n] of columns, see `StochasticRounding`


class RowKernels:
    """The functions of this module, on blocks of any number of rows. Until `compile` they run as they are."""

    def __init__(self, workspace: Workspace):
        self._workspace = workspace
        self._set(self._as_it_is)

    def compile(self, trial: Callable[[], None]) -> None:
        """Compile those that are called by `trial()` now, and others when they are first called. If that raises, they
        are as they were before."""
        self._set(_compiled)
        try:
            trial()
        except BaseException:
            self._set(self._as_it_is)
            raise

    def _set(self, how: Callable) -> None:
        self.along, self.sgd, self.adamw = how(along), how(sgd), how(adamw)

    def _as_it_is(self, function: Callable) -> Callable:
        return lambda grad, *others: function(grad, *others, self._workspace.take("product", grad.shape))


def _compiled(function: Callable) -> Callable:
    fast = torch.compile(function, fullgraph=True)

    def call(grad, *others):
        if len(grad) < 2:  # for which torch would compile once more
            return function(grad, *others)
        return fast(*map(_block, (grad, *others)))

    return call


def _block(argument):
    """As torch is to see it: a tensor by itself, of which there may be any number of rows."""
    if isinstance(argument, tuple):
        return tuple(map(_block, argument))
    if not isinstance(argument, Tensor):
        return argument
    argument = argument.data  # a part of another one, as most are, would be compiled by itself
    if argument.dim() == 2:
        torch._dynamo.maybe_mark_dynamic(argument, 0)
    return argument


def along(grad: Tensor, vectors: Tensor, inverse_norms: Tensor, scratch: Tensor | None = None) -> Tensor:
    """How much of the `vectors` [b, dim], of norms 1 / `inverse_norms` [b, 1], is in `grad` fp32 [b, dim]: [b, 1]."""
    return torch.mul(grad, vectors, out=scratch).sum(1, keepdim=True).mul_(inverse_norms.square())


def sgd(
    grad: Tensor,
    weights: Tensor,
    velocity: Tensor,
    words: tuple[Words | None, ...],
    learning_rate: Tensor,
    momentum: float,
    weight_decay: float,
    unit_dim: int | None,
    scratch: Tensor | None = None,
) -> None:
    """velocity <- momentum * velocity + grad + weight_decay * weights; weights <- weights - learning_rate * velocity.

    grad: fp32 [b, n], overwritten; weights, velocity: fp32 or, with `words` of both, bf16; learning_rate: fp32 [];
    unit_dim: as for `unit_vectors_`, if it is given.
    """
    exact, moved = weights.float(), velocity.float()
    grad.add_(exact, alpha=weight_decay)
    torch.add(grad, moved, alpha=momentum, out=moved)
    exact.addcmul_(moved, learning_rate, value=-1)
    if unit_dim:
        unit_vectors_(exact, unit_dim)
    for rounded, value, word in zip((weights, velocity), (exact, moved), words, strict=True):
        put(rounded, value, word, scratch)


def adamw(
    grad: Tensor,
    weights: Tensor,
    first: Tensor,
    second: Tensor,
    words: tuple[Words | None, ...],
    learning_rate: Tensor,
    corrections: Tensor,
    betas: tuple[float, float],
    weight_decay: float,
    unit_dim: int | None,
    scratch: Tensor | None = None,
) -> None:
    """AdamW (arXiv 1711.05101); as `sgd`. corrections: fp32 [2], 1 - beta ** updates."""
    exact, mean, square = weights.float(), first.float(), second.float()
    mean.lerp_(grad, 1 - betas[0])
    square.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    exact.mul_(1 - learning_rate * weight_decay)
    spread = torch.div(square, corrections[1], out=grad).sqrt_().add_(EPSILON)
    spread.mul_(corrections[0] / learning_rate)  # infinite where nothing is to be learnt
    exact.addcdiv_(mean, spread, value=-1)
    if unit_dim:
        unit_vectors_(exact, unit_dim)
    for rounded, value, word in zip((weights, first, second), (exact, mean, square), words, strict=True):
        put(rounded, value, word, scratch)


def unit_vectors_(weights: Tensor, dim: int) -> None:
    """Make unit vectors of the vectors of `dim` numbers of which the rows of `weights` are made, in place."""
    vectors = weights.view(-1, dim)
    vectors.div_(vectors.norm(dim=1, keepdim=True).clamp_min_(1e-12))


def put(rounded: Tensor, value: Tensor, words: Words | None, scratch: Tensor | None = None) -> None:
    """Into bf16 `rounded` what it can say of fp32 `value` [b, n], up or down as the bits of row and column have it;
    without words they are the same tensor."""
    if words is None:
        return
    bits = torch.bitwise_xor(*words, out=None if scratch is None else scratch.view(torch.int32))
    bits.add_(value.view(torch.int32)).bitwise_and_(CUT)
    rounded.copy_(bits.view(torch.float32))
