"""A head in Hugging Face's Trainer: torchrun --nproc_per_node 2 examples/trainer_loop.py [STEPS [HEAD]]"""

import tempfile

import torch
from parts import SGD, STEPS, features_of, make_parts, say
from transformers import Trainer, TrainerCallback, TrainingArguments


class HeadTrainer(Trainer):
    """A Trainer whose loss is that of a head, of batches that are those of this rank already."""

    def __init__(self, net, head, batches, arguments):
        optimizer = torch.optim.SGD(net.parameters(), **SGD)
        constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        super().__init__(net, arguments, optimizers=(optimizer, constant), callbacks=[StepOfHead(self)])
        self.head, self.batches = head, batches

    def get_train_dataloader(self):
        return self.batches

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, _ = self.head.loss(features_of(model, inputs), inputs["identities"])
        say(self.state.global_step + 1, loss)
        return loss


class StepOfHead(TrainerCallback):
    """Closes the head's step after the optimizer's, with its learning rate, before the schedule moves on."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, optimizer=None, **others):
        skipped = self.trainer.accelerator.optimizer_step_was_skipped
        self.trainer.head.step(not skipped, optimizer.param_groups[0]["lr"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=STEPS,
            max_grad_norm=0,  # no clipping, as in the other loops
            save_strategy="no",
            ddp_find_unused_parameters=False,
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        HeadTrainer(*make_parts(arguments.device), arguments).train()
