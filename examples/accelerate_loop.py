"""A head beside Hugging Face Accelerate: accelerate launch --num_processes 2 examples/accelerate_loop.py [STEPS [HEAD]]

`accelerate launch --cpu --num_processes 2` where there is no GPU.
"""

import torch
from accelerate import Accelerator
from parts import SGD, features_of, make_parts, say


def train(accelerator, net, head, batches):
    # Neither the head nor the batches are prepared: a head is no module, and batches are those of this rank already.
    net, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), **SGD))
    for step, batch in enumerate(batches, 1):
        loss, _ = head.loss(features_of(net, batch), batch["identities"])
        accelerator.backward(loss)
        optimizer.step()
        head.step(not accelerator.optimizer_step_was_skipped, optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        say(step, loss)


if __name__ == "__main__":
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    train(accelerator, *make_parts(accelerator.device))
    accelerator.end_training()
