"""ZeRO-1 and -2 look at each gradient by itself, with some twenty launches for every parameter, and a net has hundreds:
on a GPU that takes longer than the forward. Here is one look at all of them."""

import torch
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer


def look_at_all_at_once(optimizer: object) -> None:
    """Have DeepSpeed's optimizer of ZeRO-1 or -2 work out the norm of all gradients together, and find by it whether
    one of them is not finite. Others stay as they are, as one that keeps its gradients on the host."""
    if not isinstance(optimizer, DeepSpeedZeroOptimizer) or optimizer.cpu_offload or not optimizer.compute_grad_norm:
        return
    norm_direct = optimizer.get_grad_norm_direct

    def norm_of_norms(gradients, params, norm_type=2):
        own = [each for each in gradients if not getattr(each, "_zero_padding", False)][: len(params)]
        if own:
            own = [torch.stack(torch._foreach_norm(own, norm_type, dtype=torch.float32))]
        return norm_direct(own, params[:1], norm_type)

    optimizer.get_grad_norm_direct = norm_of_norms
    optimizer.check_overflow = lambda partition_gradients=True: None  # the norm comes next, and would not be finite
