"""A head beside FSDP2: torchrun --nproc_per_node 2 examples/fsdp_loop.py [STEPS [HEAD]]"""

import torch
import torch.distributed as dist
from parts import SGD, features_of, join, make_parts, say
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import get_total_norm
from transformers.models.vit.modeling_vit import ViTLayer


def train(net, head, batches):
    for module in net.modules():
        if isinstance(module, ViTLayer):
            fully_shard(module)
    fully_shard(net)  # the head stays outside: it has sharded its state itself
    optimizer = torch.optim.SGD(net.parameters(), **SGD)
    for step, batch in enumerate(batches, 1):
        loss, _ = head.loss(features_of(net, batch), batch["identities"])
        loss.backward()  # FSDP takes the mean over ranks, as a head expects
        # Both take the step, or neither: a head takes back what a refused step did to its state.
        norm = get_total_norm([p.grad for p in net.parameters()]).full_tensor()
        applied = bool(norm.isfinite())
        if applied:
            optimizer.step()
        head.step(applied, optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        say(step, loss)


if __name__ == "__main__":
    device = join()
    train(*make_parts(device))
    dist.destroy_process_group()
