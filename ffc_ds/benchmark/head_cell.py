"""What a cell of the comparison by cost consists of: a head with its class state, batches, and the floor below it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil
import torch
import torch.nn.functional as F

from ffc_ds.benchmark.plain_softmax import PlainSoftmax
from ffc_ds.config.settings import ClassOptimConfig, HeadConfig, slots_of_pool
from ffc_ds.data.randomness import permute
from ffc_ds.distributed import rank, world_size
from ffc_ds.errors import UserError
from ffc_ds.heads import MicroBatches, build_head
from ffc_ds.heads.base import Head
from ffc_ds.heads.softmax import product_type

DIM = 512
AT_ONCE = 1 << 16  # identities put into a pool
PROCESS = 1 << 30  # bytes of a process beside class state and floor: libraries and workspace
# Class state in tensors of all class weights, or of one feature a slot: weights and momentum, to which autograd and
# torch's SGD add more than five (measured), or the features of a slot.
TENSORS = {"full_fc": 2, "partial_fc": 2, "virtual_fc": 2, "metric": 0, "ffc": 1, "plain": 7.5}
TENSORS["ffc_lru"] = HeadConfig.group_size
# Rows of class state that are read or written beside what the products read and write: by the update of weights and
# momentum, and to gather the rows of a sample; ffc: of the columns, and of the rows of a batch, which go into the pool.
MOVED = {
    "plain": (4, 0),
    "full_fc": (4, 0),
    "virtual_fc": (4, 0),
    "partial_fc": (6, 0),
    "ffc": (2, 2),
    "ffc_lru": (0, 4),
}
COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}  # bytes of a copy that no cache holds


@dataclass(frozen=True)
class Cell:
    """head: "plain", a name of HeadConfig, or "ffc_lru" (head.pool lru); dtype and pool_size (ffc) as there; device:
    "cpu" or "cuda"; compiled: whether the update of class weights is."""

    head: str
    identities: int
    ranks: int
    dtype: str
    device: str
    pool_size: float = 0.0
    compiled: bool = False

    @property
    def name(self) -> str:
        pool = f"-pool{self.pool_size:g}" if self.is_ffc else ""
        how = "-compiled" if self.compiled else ""
        return f"{self.head}{pool}-{self.identities}-ranks{self.ranks}-{self.dtype}-{self.device}{how}"

    @property
    def is_ffc(self) -> bool:
        return self.head in ("ffc", "ffc_lru")

    @property
    def lru(self) -> bool:
        return self.head == "ffc_lru"

    @property
    def config(self) -> HeadConfig:
        pool = {"pool": "lru" if self.lru else "drawn", "pool_size": self.pool_size}
        return HeadConfig("ffc" if self.is_ffc else self.head, dtype=self.dtype, **pool)

    @property
    def columns(self) -> int:
        """What a step compares with, on all ranks."""
        if self.is_ffc:
            return slots_of_pool(self.pool_size, self.identities)
        if self.head == "partial_fc":
            return max(1, round(HeadConfig.sample_rate * self.identities))
        return -(-self.identities // (HeadConfig.group_identities if self.head == "virtual_fc" else 1))

    @property
    def batch(self) -> int:
        """Rows of a rank that are compared at once: both views of 32, or one of the views of 128 of ffc_lru."""
        return 128 if self.lru else 64

    @property
    def view_rows(self) -> int:
        return self.batch if self.lru else self.batch // 2

    @property
    def images(self) -> int:
        """Of a step, on all ranks."""
        return 2 * self.view_rows * self.ranks


def refuse(cell: Cell, device: torch.device) -> None:
    """Raise UserError for a cell that has fewer columns than a batch may need, or is too large for the memory."""
    rows = cell.batch * cell.ranks
    if cell.head in ("ffc_lru", "virtual_fc") and cell.columns < rows:
        raise UserError(f"a batch may need {rows} columns")
    kept = cell.identities if cell.head in ("partial_fc", "ffc") else cell.columns
    numbers = TENSORS[cell.head] * kept * DIM
    numbers += cell.columns * (rows if cell.is_ffc else rows + DIM)  # the floor's logits and weight gradient
    # If that is not the type of the class state, the floor has a copy of the columns.
    kind = product_type(torch.empty(0, dtype=getattr(torch, cell.dtype), device=device))
    needed = numbers * kind.itemsize // cell.ranks + PROCESS
    cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available // cell.ranks
    if needed > free:
        raise UserError(f"with its floor it needs {needed / 2**30:,.1f} GiB on each rank")


def head_of(cell: Cell, device: torch.device) -> Head:
    """The head, its memory in use from the start as it would be after many steps, its pool full."""
    if cell.head == "plain":
        return PlainSoftmax(cell.identities, DIM, getattr(torch, cell.dtype), device)
    rows = cell.view_rows * cell.ranks
    batches = MicroBatches(rows, 2 * rows)
    head = build_head(cell.config, ClassOptimConfig(), cell.identities, DIM, batches, device, seed=0)
    put_in_use(head, cell.identities, cell.columns if cell.lru else 0, device)
    if cell.compiled:
        head.compile()
    return head


def put_in_use(head: Head, identities: int, slots: int, device: torch.device) -> None:
    """Memory and pool, of so many slots, as they are after many steps."""
    for shard in head.shards().values():
        shard.local.mul_(1)  # the system gives memory to zeros only when they are written
    for start in range(0, slots, AT_ONCE):
        chosen = permute(np.arange(start, min(start + AT_ONCE, slots)), identities, key=0)
        head.prefill(chosen, _unit_features((len(chosen),), start, device))


def batch_of(cell: Cell, number: int, device: torch.device):
    """Arguments of `Head.loss`. For ffc_lru two thirds of the rows show the same identities in both views, as in the
    dual loader's batches, for metric all."""
    shape = (2, cell.view_rows * cell.ranks)
    identities = np.random.default_rng(number).integers(0, cell.identities, shape)
    probe, gallery = (
        _unit_features((2, cell.view_rows), (2 * number + net) * cell.ranks + rank(), device) for net in (0, 1)
    )
    shared = {"ffc_lru": 2 * shape[1] // 3, "metric": shape[1]}.get(cell.head, 0)
    identities[1, :shared] = identities[0, :shared]
    return probe.requires_grad_(), identities, gallery if cell.lru else None


def _unit_features(shape: tuple[int, ...], seed: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, DIM, generator=generator), dim=-1).to(device)


def products_of(cell: Cell, head: Head, device: torch.device) -> Callable[[], None]:
    """The matrix products that this rank cannot do without, in the type that the device is fast in, nothing else."""
    shards = head.shards()
    weights = shards["pool"].local[0] if cell.lru else shards["weights"].local
    weights = weights[: -(-cell.columns // world_size())]
    weights = weights.to(product_type(weights))
    features = _unit_features((cell.batch * cell.ranks,), 0, device).to(weights.dtype)
    logits = weights.new_empty(len(features), len(weights))
    pull = torch.empty_like(features)
    trained = not cell.is_ffc
    grad = torch.empty_like(weights) if trained else None

    def products():
        for _ in range(2 if cell.lru else 1):
            torch.mm(features, weights.T, out=logits)
            torch.mm(logits, weights, out=pull)
        if trained:
            torch.mm(logits.T, features, out=grad)

    return products


def flop_of_products(cell: Cell) -> int:
    """Of a rank."""
    products = 4 if cell.lru else 2 if cell.is_ffc else 3
    return products * 2 * cell.batch * cell.ranks * -(-cell.columns // cell.ranks) * DIM


def moved_bytes(cell: Cell) -> int:
    """What a rank must read and write beside the products' own reading and writing, see `MOVED`."""
    of_columns, of_rows = MOVED[cell.head]
    rows = of_columns * -(-cell.columns // cell.ranks) + of_rows * cell.batch
    return rows * DIM * getattr(torch, cell.dtype).itemsize


def copy_of(device: torch.device) -> Callable[[], None]:
    """A copy of `COPIED` bytes, which reads and writes as many."""
    source = torch.ones(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return lambda: target.copy_(source)
