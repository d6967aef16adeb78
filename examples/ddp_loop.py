"""A head in a plain loop: torchrun --nproc_per_node 2 examples/ddp_loop.py [STEPS [HEAD]]"""

import torch
import torch.distributed as dist
from parts import SGD, features_of, join, make_parts, say
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm


def train(net, head, batches):
    net = DistributedDataParallel(net)  # the head stays outside: its state is no parameter
    optimizer = torch.optim.SGD(net.parameters(), **SGD)
    for step, batch in enumerate(batches, 1):
        loss, _ = head.loss(features_of(net, batch), batch["identities"])
        loss.backward()  # DDP takes the mean over ranks, as a head expects
        # Both take the step, or neither: a head takes back what a refused step did to its state.
        applied = bool(get_total_norm([p.grad for p in net.parameters()]).isfinite())
        if applied:
            optimizer.step()
        head.step(applied, optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        say(step, loss)


if __name__ == "__main__":
    device = join()
    train(*make_parts(device))
    dist.destroy_process_group()
