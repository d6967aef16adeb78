"""Batch normalisation whose statistics stay fp32 while weights and activations are half precision."""

import torch.nn.functional as F
from torch import Tensor, nn


class _Fp32Statistics:
    """DeepSpeed keeps buffers in fp32 and weights in bf16 or fp16; torch wants weights of the buffers' type.

    frozen: the running statistics are used, and stay, also in training mode.
    """

    frozen = False

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        training = self.training and not self.frozen
        if training:
            self.num_batches_tracked.add_(1)
        weight, bias = (parameter.to(self.running_mean.dtype) for parameter in (self.weight, self.bias))
        return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, training, self.momentum, self.eps)


class BatchNorm1d(_Fp32Statistics, nn.BatchNorm1d):
    """Over features [B, channels]."""


class BatchNorm2d(_Fp32Statistics, nn.BatchNorm2d):
    """Over maps [B, channels, height, width]."""
