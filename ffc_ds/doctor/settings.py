"""Whether the settings go together, and what they say to a plan."""

from dataclasses import asdict, replace

from ffc_ds.data.batch_checks import check_batches
from ffc_ds.distributed import world_size
from ffc_ds.doctor.case import Case
from ffc_ds.doctor.finding import Finding
from ffc_ds.planning.backbone import count_backbone
from ffc_ds.planning.of_run import settings_of_run
from ffc_ds.planning.plan import Plan, make_plan
from ffc_ds.planning.settings import PlanSettings
from ffc_ds.training.deepspeed_settings import check_deepspeed_config

FEWEST = 2  # identities of a plan, as long as the data is not known


def measure_settings(case: Case) -> dict:
    """Raises UserError for what a run would be refused for, as far as that shows before data is read."""
    config, ranks = case.config, world_size()
    check_batches(config, ranks)
    check_deepspeed_config(config)
    settings = PlanSettings(FEWEST, FEWEST, ranks, **settings_of_run(config, ranks))
    count_backbone(settings)
    return asdict(settings)


def judge_settings(case: Case, found: list[dict]) -> Finding:
    settings, backbone = case.settings, count_backbone(case.settings)
    measured = (
        f"{settings.head}, {settings.backbone} of {backbone.parameters / 1e6:.1f} M weights in {settings.dtype}, "
        f"ZeRO {settings.zero}, {settings.batch_size} images a rank at once"
    )
    return Finding("ok", measured)


def plan_of(case: Case) -> Plan:
    """The plan of the run, with the data and on the ranks that were found. Raises Unmeasured."""
    settings, data = case.settings, case.of("data")[0]
    most = max(map(len, case.ranks_of_hosts().values()))
    settings = replace(settings, identities=data["identities"], images=data["images"], gpus_per_node=most)
    return make_plan(settings, count_backbone(settings), case.device)
