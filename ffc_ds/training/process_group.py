"""The processes of a run: how they meet, and on which devices."""

import logging
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import logger

from ffc_ds.distributed import TIMEOUT, host_share, rank, world_size
from ffc_ds.errors import UserError
from ffc_ds.launching import overruled_devices
from ffc_ds.progress import say
from ffc_ds.rendezvous import meet
from ffc_ds.training.operators import watch_builds

logger.setLevel(logging.WARNING)
warnings.filterwarnings("ignore", "`torch.distributed.*is deprecated", FutureWarning)  # DeepSpeed's calls
watch_builds()
if get_accelerator().device_name() == "cpu":
    # Its all-reduce is for inference. It would be compiled for a minute and keep 66 MB of /dev/shm for each rank.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def init_distributed(timeout: timedelta = TIMEOUT) -> torch.device:
    """Join the processes of the launcher, or stand alone without one. Returns this rank's device.

    timeout: how long ranks wait for each other.
    """
    # DeepSpeed calls ninja by name, also when the environment that holds it is not activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    accelerator, store = get_accelerator(), meet()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if accelerator.device_name() == "cpu":
        backend, device = "gloo", torch.device("cpu")
    else:
        if local_rank >= accelerator.device_count():
            raise UserError(
                f"more ranks than GPUs: there are {accelerator.device_count()} here. Lower --num_accelerators."
            )
        same_again(True)
        accelerator.set_device(local_rank)
        backend, device = accelerator.communication_backend_name(), torch.device(accelerator.device_name(local_rank))
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
    del store
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        # Otherwise every rank takes all cores, and all of them are several times slower for it.
        torch.set_num_threads(max(1, round(len(os.sched_getaffinity(0)) / (host_share() * world_size()))))
    if rank() == 0 and (devices := overruled_devices()):
        say(devices)
    return device


def same_again(wanted: bool) -> None:
    """Whether a GPU computes the same when a run is resumed, with slower algorithms, or may sum in any order."""
    torch.backends.cudnn.deterministic = wanted
    for fused_attention in ("flash", "mem_efficient", "cudnn"):  # its gradients are summed in any order
        getattr(torch.backends.cuda, f"enable_{fused_attention}_sdp")(not wanted)
