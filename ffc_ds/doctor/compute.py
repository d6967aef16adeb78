"""How fast a rank multiplies matrices in the precision of the run."""

import statistics

from ffc_ds.doctor.case import Case
from ffc_ds.doctor.finding import Finding
from ffc_ds.planning.table import matrix_rate

SLOW = 0.75  # of the ranks' median


def measure_matrices(case: Case) -> dict[str, float]:
    """FLOP/s by type: that of the run, and fp32, which it should beat."""
    return {dtype: matrix_rate(dtype) for dtype in dict.fromkeys((case.settings.dtype, "fp32"))}


def judge_matrices(case: Case, found: list[dict[str, float]]) -> Finding:
    dtype = case.settings.dtype
    rates = [each[dtype] for each in found]
    usual, slowest = statistics.median(rates), min(rates)
    tflops = f"{min(rates) / 1e12:.3g} to {max(rates) / 1e12:.3g} TFLOP/s a rank in {dtype}"
    advice = f"launch/plan.py --matrix-tflops {slowest / 1e12:.3g} tells how long the run takes at least"
    full = statistics.median(each["fp32"] for each in found)
    if dtype != "fp32" and usual < full:
        advice = f"choose fp32 (ds_configs/zero2.json), or a device that computes in {dtype}"
        return Finding("warning", f"{tflops}, less than the {full / 1e12:.3g} of fp32", advice)
    if slowest < SLOW * usual:
        slow = [case.name(rank) for rank, rate in enumerate(rates) if rate < SLOW * usual]
        advice = "all wait for the slowest: see what else runs there, how hot it is, and what limits its power"
        return Finding("warning", f"{tflops}; slow: {', '.join(slow)}", advice)
    return Finding("ok", tflops, advice)
