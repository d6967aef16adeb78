"""The recipes for the sets that people train on: planned for the eight GPUs that they were published for."""

import json
from dataclasses import replace

import pytest

from ffc_ds.config.settings import parse_config
from ffc_ds.errors import UserError
from ffc_ds.planning.backbone import backbone_memory, count_backbone
from ffc_ds.planning.plan import make_plan
from ffc_ds.planning.settings import PlanSettings, parse_settings
from tests.launched import ROOT

RECIPES = {"ms1mv3_r50": (93_431, 5_179_510), "glint360k_r100": (360_232, 17_091_657)}
RECIPES |= {"webface42m_r100": (2_059_906, 42_474_557)}


def recipe(name):
    return str(ROOT / "launch" / "recipes" / f"{name}.yaml")


@pytest.mark.parametrize("head", ["full_fc", "partial_fc", "ffc"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_eight_gpus_with_each_head(name, head):
    identities, images = map(str, RECIPES[name])
    arguments = ["--config", recipe(name), "--head.name", head, "--gpus", "8", "--gpu-memory", "32"]
    settings = parse_settings([*arguments, "--identities", identities, "--images", images])
    assert (settings.head, settings.batch_size, settings.sample_rate, settings.dtype) == (head, 128, 0.2, "bf16")
    plan = make_plan(settings, count_backbone(settings))
    assert plan.fits, plan.memory


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_complete_but_for_the_data_and_suits_the_head(name):
    for head, loader in {"full_fc": "instance", "partial_fc": "instance", "ffc": "instance"}.items():
        assert parse_config(["--config", recipe(name), "--head.name", head]).loader == loader
    published = (ROOT / "launch" / "recipes" / f"{name}.yaml").read_text().partition("output_dir")[0]
    assert "IJB-C TAR" in published and f"{RECIPES[name][0]:,} people" in published
    assert parse_config(["--config", recipe(name)]).optim.lr_batch == 1024


def test_a_run_is_planned_from_its_own_settings(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: {batch_size: 128, workers: 3}\nmodel: {name: vit, image_size: 32, overrides: {hidden_size: 64}}\n"
        "head: {name: full_fc, dtype: bfloat16, pool: lru}\ntrain: {accumulation: 2, average: 0.99}\n"
        "class_optim: {name: adamw, memory: host}\n"
    )
    arguments = ["--identities", "1e5", "--images", "1e6", "--gpus=4", f"--config={file}", "--head.name", "ffc"]
    found = parse_settings([*arguments, "--deepspeed", "ds_configs/zero3.json", "--model.embedding_size", "64"])
    expected = PlanSettings(
        *(1e5, 1e6, 4),
        **{"head": "ffc", "backbone": "vit", "image_size": 32, "embedding_size": 64, "overrides": {"hidden_size": 64}},
        **{"batch_size": 16, "accumulation": 2, "zero": 3, "dtype": "fp32", "bucket_size": 50_000_000, "average": 0.99},
        **{"head_dtype": "bfloat16", "pool": "lru", "class_optimizer": "adamw", "class_memory": "host", "workers": 3},
    )
    assert found == expected
    assert parse_settings([*arguments, "--head", "metric", "--batch-size", "2", "--zero=1"]) == replace(
        expected, head="metric", batch_size=2, zero=1, embedding_size=512
    )


def test_offload_moves_the_optimizer_to_the_host(tmp_path):
    (tmp_path / "params.json").write_text(json.dumps({"zero_optimization": {"offload_param": {"device": "cpu"}}}))
    line = ["--identities", "1e5", "--images", "1e6", "--gpus=4", "--head.name", "full_fc", "--data.batch_size", "256"]
    line += ["--gpus-per-node", "4", "--model.image_size", "32", "--model.overrides", "{width: 0.25}", "--deepspeed"]
    plans = {}
    for name in ("zero2", "offload"):
        settings = parse_settings([*line, f"ds_configs/{name}.json"])
        backbone = count_backbone(settings)
        plans[name] = make_plan(settings, backbone)
    moved = plans["zero2"].memory["backbone optimizer"]
    assert moved == backbone.parameters * 8 / 4 and plans["offload"].memory["backbone optimizer"] == 0
    assert plans["zero2"].host["backbone optimizer"] == 0  # weights, gradient and momentum in fp32, of the whole host
    assert plans["offload"].host["backbone optimizer"] == backbone.parameters * 12
    with pytest.raises(UserError, match="params.json has offload_param"):
        parse_settings([*line, str(tmp_path / "params.json")])


def test_the_net_is_the_one_that_the_overrides_make_and_an_average_is_counted():
    plain = PlanSettings(1e5, 1e6, 4, backbone="vit", image_size=32, batch_size=2, dtype="fp32")
    small = replace(plain, overrides={"hidden_size": 64, "num_hidden_layers": 1}, average=0.9)
    counted = count_backbone(small)
    assert counted.parameters < count_backbone(plain).parameters / 10
    memory = {s.average: backbone_memory(s, counted, gallery=False) for s in (small, replace(small, average=0))}
    assert memory[0.9]["average of the weights"] == 4 * counted.parameters and not memory[0]["average of the weights"]
