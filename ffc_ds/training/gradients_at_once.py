"""ZeRO-1 and -2 deal with each gradient by itself, with dozens of launches for every parameter, and a net has hundreds:
on a GPU that takes longer than the net itself. Here they are dealt with together."""

from functools import partial

import deepspeed.comm as dist
import torch
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

SUMMED = 2**18  # squares in one fp32 sum; with 4e7, on a CPU, the norm is 0.3 % too small


def deal_with_all_at_once(optimizer: object) -> None:
    """Have DeepSpeed's optimizer of ZeRO-1 or -2 work out the norm of all gradients together, find by it whether one of
    them is not finite, and average those of a parameter group over the ranks as one tensor, if `reduce_bucket_size` has
    room for all. Others stay as they are, as one that keeps its gradients on the host."""
    if not isinstance(optimizer, DeepSpeedZeroOptimizer) or optimizer.cpu_offload or not optimizer.compute_grad_norm:
        return
    norm_direct = optimizer.get_grad_norm_direct

    def norm_of_norms(gradients, params, norm_type=2):
        own = [each for each in gradients if not getattr(each, "_zero_padding", False)][: len(params)]
        if own:
            parts = [part for each in own for part in each.flatten().split(SUMMED)]
            own = [torch.stack(torch._foreach_norm(parts, norm_type, dtype=torch.float32))]
        return norm_direct(own, params[:1], norm_type)

    optimizer.get_grad_norm_direct = norm_of_norms
    optimizer.check_overflow = lambda partition_gradients=True: None  # the norm comes next, and would not be finite
    if _fit_together(optimizer):
        optimizer.process_gradients = lambda parameter, group: None  # of each, as soon as the backward has it
        optimizer.reduce_ready_partitions_and_remove_grads = lambda parameter, group: None
        optimizer.independent_gradient_partition_epilogue = partial(_average, optimizer)


def _fit_together(optimizer: DeepSpeedZeroOptimizer) -> bool:
    """Whether DeepSpeed, too, would reduce them in one bucket, and the ds_config asks for no other way or order."""
    parameters = [each for group in optimizer.bit16_groups for each in group]
    usual = optimizer.gradient_average and optimizer.reduce_scatter and optimizer.use_multi_rank_bucket_allreduce
    other = optimizer.overlap_comm or optimizer.round_robin_gradients or optimizer.parameter_alignment
    one_type = optimizer.dtype == optimizer.gradient_accumulation_dtype and len(optimizer.ipg_buckets) == 1
    muon = any(getattr(each, "use_muon", False) for each in parameters)
    fit = sum(each.numel() for each in parameters) <= optimizer.reduce_bucket_size
    return usual and not other and one_type and not muon and fit


def _average(optimizer: DeepSpeedZeroOptimizer) -> None:
    """What ZeRO does at the end of a backward: this rank's part of the mean gradient, summed over micro-batches."""
    for number in range(len(optimizer.bit16_groups)):
        gradient = _own_part(optimizer, number)
        if optimizer.all_grad_tensors.get(number) is not None:
            gradient += optimizer.all_grad_tensors[number][0]
        last = optimizer.is_gradient_accumulation_boundary()
        optimizer.all_grad_tensors[number] = None if last else [gradient]
        if last:
            optimizer.averaged_gradients[number] = [gradient]
    optimizer._clear_param_grad_only()
    optimizer._epilogue_ran_this_backward = True


def _own_part(optimizer: DeepSpeedZeroOptimizer, number: int) -> Tensor:
    """Of group `number`, [partition_size] in the type of the weights."""
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in optimizer.bit16_groups[number]]
    group, size = optimizer.real_dp_process_group[number], int(optimizer.partition_size[number])
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    padding = gradients[0].new_zeros(ranks * size - sum(each.numel() for each in gradients))
    whole = torch.cat([*(each.reshape(-1) for each in gradients), padding])
    if ranks > 1:
        whole = whole.div_(ranks).to(optimizer.communication_data_type)
        dist.all_reduce(whole, group=group)
    part = whole.narrow(0, rank * size, size)
    return part.to(optimizer.dtype, copy=ranks > 1)  # which does not keep the whole
