"""The backbones: shapes, gradients, the published architectures, saving and loading, and what users get wrong."""

import math

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel

from ffc_ds.errors import UserError
from ffc_ds.models import BACKBONES, FaceEmbedding, IResNet, IResNetConfig, build_backbone

# Small versions that keep every kind of layer.
SMALL = {
    "iresnet18": {"depth": [1, 2, 1, 1], "width": 0.25},
    "mobilefacenet": {},
    "vit": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}
VARIANTS = [("iresnet18", {}), ("mobilefacenet", {}), ("vit", {}), ("vit", {"batch_norm": False})]
IRESNET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 200: (6, 26, 60, 6)}


def images(batch: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def small(name: str, image_size: int = 32, **overrides):
    torch.manual_seed(0)
    return build_backbone(name, image_size, embedding_size=24, **{**SMALL[name], **overrides})


@pytest.mark.parametrize("image_size", [32, 64, 96, 112])
@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_output_shape(name, settings, image_size):
    out = small(name, image_size, **settings)(images(2, image_size))
    assert isinstance(out, FaceEmbedding)
    assert list(out.keys()) == ["embeddings"]
    assert out.embeddings.shape == (2, 24)
    assert out.embeddings.dtype == torch.float32


def test_iresnet_takes_sizes_that_do_not_halve_evenly():
    assert small("iresnet18", 50)(images(2, 50)).embeddings.shape == (2, 24)
    assert small("mobilefacenet", 50)(images(2, 50)).embeddings.shape == (2, 24)


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_every_trainable_parameter_gets_a_gradient(name, settings):
    # In double precision, so that a gradient that cancels exactly is told from a small one.
    model = small(name, **settings).double()
    embeddings = model(images(4, 32)).embeddings
    (embeddings * torch.randn_like(embeddings)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    # BatchNorm subtracts whatever constant was added before it, so only a net without it moves every bias.
    every_bias = not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules())
    moving = {name: gradient for name, gradient in gradients.items() if every_bias or not name.endswith("bias")}
    assert [name for name, gradient in moving.items() if gradient.abs().max() < 1e-10] == []


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_saved_and_loaded_backbone_is_the_same(name, settings, tmp_path):
    model = small(name, **settings)
    # A forward in training mode moves the running statistics, noise moves the rest off its initial value.
    model(images(4, 32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)

    assert type(loaded) is type(model)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        # Not compared by name: transformers writes a ViT under the names its hub checkpoints have.
        assert len(file.keys()) == len(model.state_dict())
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == trainable
    x = images(3, 32, seed=1)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x).embeddings, model.eval()(x).embeddings)


@pytest.mark.parametrize("name", SMALL)
def test_config_is_known_to_autoconfig(name, tmp_path):
    config = small(name).config
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is type(config)
    assert (loaded.image_size, loaded.embedding_size) == (32, 24)
    assert all(getattr(loaded, key) == value for key, value in SMALL[name].items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SMALL)
def test_half_precision_follows_fp32(name, dtype):
    model = small(name)
    x = images(8, 32)
    with torch.no_grad():
        exact = model(x).embeddings
        half = model.to(dtype)(x).embeddings
    assert half.dtype == dtype
    assert torch.nn.functional.cosine_similarity(half.float(), exact).min() > 0.99


def test_vit_without_batch_norm_has_no_batch_statistics():
    model, x = small("vit", batch_norm=False), images(4, 32)
    alone = torch.cat([model(image[None]).embeddings for image in x])
    torch.testing.assert_close(model(x).embeddings, alone, rtol=1e-5, atol=1e-6)


def iresnet_parameters(blocks: tuple[int, ...], image_size: int, embedding_size: int) -> int:
    """Counted by hand: 9 weights a 3x3 kernel, 2 per BatchNorm channel, 1 per PReLU channel."""
    total, c_in = 3 * 64 * 9 + 2 * 64 + 64, 64
    for count, c in zip(blocks, (64, 128, 256, 512), strict=True):
        inner = 9 * c * c + 2 * c + c + 9 * c * c + 2 * c
        projection = c_in * c + 2 * c
        total += projection + (2 * c_in + inner - 9 * c * c + 9 * c_in * c) + (count - 1) * (2 * c + inner)
        c_in = c
    pixels = (image_size // 16) ** 2
    return total + 2 * 512 + 512 * pixels * embedding_size + embedding_size + 2 * embedding_size


@pytest.mark.parametrize(("depth", "published"), [(18, 24.03), (34, 34.14), (50, 43.59), (100, 65.16), (200, 118.83)])
def test_iresnet_has_the_published_number_of_weights(depth, published):
    with torch.device("meta"):
        model = IResNet(IResNetConfig(depth=depth))
    # The fixed scale of the last BatchNorm is among the published weights; here it is a buffer.
    count = sum(p.numel() for p in model.parameters()) + model.features.weight.numel()
    assert count == iresnet_parameters(IRESNET_BLOCKS[depth], 112, 512)
    assert round(count / 1e6, 2) == published


def test_iresnet_state_dict_has_the_names_of_insightface():
    def batch_norm(prefix):
        return {f"{prefix}.{key}" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}

    expected = {"conv1.weight", "prelu.weight", "fc.weight", "fc.bias"}
    expected |= batch_norm("bn1") | batch_norm("bn2") | batch_norm("features")
    for stage, count in enumerate(IRESNET_BLOCKS[18], start=1):
        expected |= {f"layer{stage}.0.downsample.0.weight"} | batch_norm(f"layer{stage}.0.downsample.1")
        for block in (f"layer{stage}.{i}" for i in range(count)):
            expected |= {f"{block}.conv1.weight", f"{block}.conv2.weight", f"{block}.prelu.weight"}
            expected |= batch_norm(f"{block}.bn1") | batch_norm(f"{block}.bn2") | batch_norm(f"{block}.bn3")
    assert set(build_backbone("iresnet18", width=0.25).state_dict()) == expected


def test_iresnet_block_against_its_definition():
    """One block in plain functions of the tensors of the state dict."""
    block = small("iresnet18").layer2[0]
    with torch.no_grad():
        for tensor in block.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    block.eval()
    state = block.state_dict()

    def norm(x, name):
        mean, var, weight, bias = (state[f"{name}.{k}"].view(1, -1, 1, 1)
                                   for k in ("running_mean", "running_var", "weight", "bias"))  # fmt: skip
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    x = torch.randn(2, 16, 7, 7)
    conv2d = torch.nn.functional.conv2d
    out = norm(conv2d(norm(x, "bn1"), state["conv1.weight"], padding=1), "bn2")
    out = torch.where(out > 0, out, out * state["prelu.weight"].view(1, -1, 1, 1))
    out = norm(conv2d(out, state["conv2.weight"], stride=2, padding=1), "bn3")
    out = out + norm(conv2d(x, state["downsample.0.weight"], stride=2), "downsample.1")
    torch.testing.assert_close(block(x), out, rtol=1e-4, atol=1e-3)


def test_iresnet_initial_weights():
    model = build_backbone("iresnet18", image_size=32)
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        if "conv" in name or "downsample.0" in name:
            assert weight.std() == pytest.approx(0.1, rel=0.1), name
        elif "prelu" in name:
            assert (weight == 0.25).all(), name
        elif "fc" in name:
            assert weight.abs().max() == pytest.approx(1 / math.sqrt(model.fc.in_features), rel=0.05), name
        else:
            assert (weight == (1 if name.endswith("weight") else 0)).all(), name
    assert (model.features.weight == 1).all()
    assert not model.features.weight.requires_grad


def test_mobilefacenet_has_the_paper_s_size():
    """Every convolution of table 1 as (kernel, c_in, c_out, groups); with 128 outputs, 0.99 million weights."""
    convolutions = [(3, 3, 64, 1), (3, 64, 64, 64)]
    c_in = 64
    for t, c, n, _ in [(2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1)]:
        for _ in range(n):
            hidden = t * c_in
            convolutions += [(1, c_in, hidden, 1), (3, hidden, hidden, hidden), (1, hidden, c, 1)]
            c_in = c
    convolutions += [(1, 128, 512, 1), (7, 512, 512, 512), (1, 512, 128, 1)]
    expected = sum(k * k * i * o // groups for k, i, o, groups in convolutions)
    model = build_backbone("mobilefacenet", embedding_size=128)
    assert sum(p.numel() for p in model.parameters() if p.dim() > 1) == expected
    assert expected / 1e6 == pytest.approx(0.99, abs=0.02)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet50", {}, "Unknown backbone 'resnet50'.*" + ".*".join(BACKBONES)),
        ("iresnet50", {"widht": 2.0}, "no setting widht.*depth.*width"),
        ("vit", {"depth": 3}, "no setting depth.*num_hidden_layers"),
        ("mobilefacenet", {"dtype": "float16"}, "no setting dtype"),
        ("iresnet50", {"depth": 51}, "depth 51"),
        ("iresnet50", {"depth": [2, 2, 2]}, r"depth \[2, 2, 2\]"),
        ("iresnet50", {"depth": "deep"}, "depth.*'deep'"),
        ("iresnet50", {"width": 0}, "width 0"),
        ("iresnet50", {"width": 1e8}, "not enough memory"),
        ("iresnet50", {"dropout": 1.0}, "dropout"),
        ("iresnet50", {"image_size": 8}, "image_size 8"),
        ("mobilefacenet", {"image_size": 15}, "image_size 15"),
        ("mobilefacenet", {"image_size": 112.0}, "image_size.*112.0"),
        ("vit", {"image_size": 60}, "image_size 60.*multiple of patch_size 8"),
        ("vit", {"num_attention_heads": 7}, "multiple of num_attention_heads 7"),
        ("vit", {"num_hidden_layers": 0}, "num_hidden_layers"),
        *((name, {"embedding_size": 0}, "embedding_size") for name in SMALL),
    ],
)
def test_mistakes_are_told_in_one_message(name, settings, message):
    with pytest.raises(UserError, match=message):
        build_backbone(name, **settings)
