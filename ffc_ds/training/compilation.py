"""Compiled nets: whether a run is long enough for them, and the compiling, before the first step and in plain sight."""

import time
from math import inf

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ffc_ds.distributed import all_reduce, broadcast_object, rank
from ffc_ds.heads.base import Head
from ffc_ds.progress import say, waiting

# Compiling takes one or two minutes and saves a sixth (fp32) to a third (bf16) of a step on a CPU.
LONG = 900.0  # seconds of forward and backward from which that pays
SILENT = 2.0  # seconds


def is_worth_compiling(backbone: PreTrainedModel, inputs: Tensor, micro_batches: int) -> bool:
    """Whether so many forwards and backwards of a net like `backbone` take long enough, as rank 0 measures them on
    `inputs` [n, 3, S, S] while all ranks do; the same on all ranks."""
    with torch.random.fork_rng():
        net = type(backbone)(backbone.config).to(inputs.device, inputs.dtype)
        for own, given in zip(net.parameters(), backbone.parameters(), strict=True):
            own.requires_grad_(given.requires_grad)
        seconds = inf
        for _ in range(3):  # the first ones warm up
            begin = time.perf_counter()
            _forward_and_backward(net, inputs)
            if inputs.is_cuda:
                torch.cuda.synchronize(inputs.device)
            seconds = min(seconds, time.perf_counter() - begin)
            if seconds * micro_batches <= LONG:
                break
    return broadcast_object(seconds * micro_batches > LONG)


def compile_nets(
    probe: nn.Module, gallery: nn.Module | None, verified: nn.Module, inputs: Tensor, evaluated: Tensor | None
) -> bool:
    """Compile the probe net for training on `inputs`, the gallery net for inference, and the net that is verified,
    which may be the probe, for inputs like `evaluated` (if any), all in place; parameters, buffers and random numbers
    stay what they are. Dropout drops what it does without.

    Returns whether it worked, on all ranks alike; otherwise, without a compiler for one, the nets stay as they were and
    rank 0 says why.
    """
    nets = {id(net): net for net in (probe, gallery, verified) if net is not None}.values()
    buffers = [buffer for net in nets for buffer in net.buffers()]
    before = [buffer.clone() for buffer in buffers]
    begin, error = time.monotonic(), None
    for net in nets:
        net.compile(dynamic=False, options={"fallback_random": True})
    try:
        with torch.random.fork_rng(), waiting("compiling the net", SILENT, shown=rank() == 0):
            _run_all(probe, gallery, verified, inputs, evaluated)
    except Exception as failure:  # of any type: it comes from a compiler
        error = failure
    failed = bool(all_reduce(torch.tensor(float(error is not None), device=inputs.device)))
    if failed:
        for net in nets:
            net._compiled_call_impl = None
        probe.train()
    with torch.no_grad():
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
    if rank() == 0:
        reason = _first_line(error) if error else "it failed on another rank"
        say(f"the net cannot be compiled and runs as it is: {reason}" if failed else _done(time.monotonic() - begin))
    return not failed


def compile_head(head: Head) -> None:
    """Compile what the head does to class rows. Without a compiler for that it stays as it was and rank 0 says why;
    nothing that ranks do together depends on it."""
    try:
        with waiting("compiling the update of the classes", SILENT, shown=rank() == 0):
            head.compile()
    except Exception as failure:  # of any type: it comes from a compiler
        if rank() == 0:
            say(f"the update of the classes cannot be compiled and runs as it is: {_first_line(failure)}")


def _first_line(error: Exception) -> str:
    return f"{error}".strip().partition("\n")[0] or type(error).__name__


def _done(seconds: float) -> str:
    return f"compiled the net in {seconds:.0f} s"


def _run_all(probe, gallery, verified, inputs, evaluated):
    _forward_and_backward(probe, inputs)
    with torch.no_grad():
        if gallery is not None:
            gallery(inputs)
        if evaluated is not None:
            training = verified.training
            verified.eval()
            verified(evaluated)
            verified.train(training)


def _forward_and_backward(net: nn.Module, inputs: Tensor) -> None:
    """Gradients are made and thrown away; those of the parameters, and whoever waits for them, see nothing."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    torch.autograd.grad(net(inputs).embeddings.float().sum(), parameters)
