"""The backbones. Importing this package makes them known to transformers' `AutoConfig`, `AutoModel` and
`AutoImageProcessor`."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel

from ffc_ds.errors import UserError
from ffc_ds.models.hub_encoder import HubEncoder
from ffc_ds.models.hub_source import PREFIX, build_hub_encoder
from ffc_ds.models.image_processor import FaceImageProcessor
from ffc_ds.models.iresnet import BLOCKS, IResNet, IResNetConfig
from ffc_ds.models.mobilefacenet import MobileFaceNet, MobileFaceNetConfig
from ffc_ds.models.output import FaceEmbedding
from ffc_ds.models.vit import FaceViT, FaceViTConfig

__all__ = [
    "BACKBONES",
    "FaceEmbedding",
    "FaceViT",
    "FaceViTConfig",
    "HubEncoder",
    "IResNet",
    "IResNetConfig",
    "MobileFaceNet",
    "MobileFaceNetConfig",
    "build_backbone",
]

for _model in (IResNet, MobileFaceNet, FaceViT, HubEncoder):
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModel.register(_model.config_class, _model, exist_ok=True)
    AutoImageProcessor.register(_model.config_class, image_processor_classes={"pil": FaceImageProcessor}, exist_ok=True)

# Name of a backbone: its model class, and what the name says of its configuration.
BACKBONES: dict[str, tuple[type[PreTrainedModel], dict[str, Any]]] = {
    **{f"iresnet{depth}": (IResNet, {"depth": depth}) for depth in BLOCKS},
    "mobilefacenet": (MobileFaceNet, {}),
    "vit": (FaceViT, {}),
}


def build_backbone(name: str, image_size: int = 112, embedding_size: int = 512, **overrides: Any) -> PreTrainedModel:
    """A freshly initialised backbone, in fp32 and in training mode.

    name: a key of `BACKBONES`, or hub:OWNER/NAME or hub:FOLDER, an encoder of transformers. image_size: side of
    the square input, pixels. overrides: fields of its config class.
    Its forward takes float [B, 3, image_size, image_size] in [-1, 1] and gives a `FaceEmbedding`.

    Raises UserError for an unknown name, an unknown override or a value the backbone cannot be built from.
    """
    sizes = {"image_size": image_size, "embedding_size": embedding_size}
    if name.startswith(PREFIX):
        return _built(partial(build_hub_encoder, name), name, sizes | overrides)
    if name not in BACKBONES:
        raise UserError(f"Unknown backbone '{name}'. There are: {', '.join(BACKBONES)}, and hub:OWNER/NAME.")
    model_class, preset = BACKBONES[name]
    config_class = model_class.config_class
    known = {field.name for field in fields(config_class)} - {field.name for field in fields(PreTrainedConfig)}
    if unknown := sorted(overrides.keys() - known):
        raise UserError(
            f"Backbone {name} has no setting {', '.join(unknown)}. There are: {', '.join(sorted(known))}. "
            "`--model.overrides {}` drops those of a file."
        )
    return _built(lambda **settings: model_class(config_class(**settings)), name, preset | sizes | overrides)


def _built(build: Callable[..., PreTrainedModel], name: str, settings: dict[str, Any]) -> PreTrainedModel:
    try:
        return build(**settings)
    except StrictDataclassFieldValidationError as error:
        raise UserError(f"Backbone {name}: {error.__cause__}") from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise UserError(f"Backbone {name}: there is not enough memory for a net of that size: {settings}") from error
