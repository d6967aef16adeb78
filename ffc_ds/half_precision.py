"""What a device is able to do in half precision."""

from functools import cache

import torch


@cache
def multiplies_bf16(device_type: str) -> bool:
    """Whether a device of that type, "cpu" or "cuda", multiplies bf16 faster than fp32. CPUs without AMX or AVX512-BF16
    and GPUs before Ampere do it, too, and slower."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return able.get("amx_bf16", False) or able.get("avx512_bf16", False)
