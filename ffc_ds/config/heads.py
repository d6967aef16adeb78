"""Which settings only some heads read."""

from collections.abc import Collection

LEARNT = {"full_fc", "partial_fc", "virtual_fc"}  # their class weights have an optimiser
ANY = LEARNT | {"metric", "ffc"}
OF_POOL = {"center_momentum": "drawn"} | dict.fromkeys(
    ("group_size", "fresh_weight", "loss_terms", "hide_unfilled", "own_rows_only"), "lru"
)
ONLY_FOR = {
    "sample_rate": {"partial_fc"},
    "sub_centers": {"full_fc", "partial_fc"},
    "group_identities": {"virtual_fc"},
    "metric_loss": {"metric"},
} | dict.fromkeys(("pool", "pool_size", "gallery_momentum", "prefill", "preset", *OF_POOL), {"ffc"})
NOT_FOR_METRIC = {"margin", "margin_strength", "interclass_filter", "dtype", "workspace_mb"}


def unread(head, given: Collection[str]) -> list[str]:
    """Those of the settings `given`, by dotted key, that a HeadConfig and its optimizer do not read."""
    return [key for key in sorted(given) if not _is_read(head, *key.partition(".")[::2])]


def _is_read(head, section: str, name: str) -> bool:
    if section == "class_optim":
        return head.name in LEARNT
    if section != "head":
        return True
    if head.name == "metric" and name in NOT_FOR_METRIC:
        return False
    if head.name == "ffc" and OF_POOL.get(name, head.pool) != head.pool:
        return False
    return head.name in ONLY_FOR.get(name, ANY)
