"""A vision encoder of transformers, in a folder or on the hub: what it is, what it is used to see, and its weights."""

import json
from math import isclose
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.func import functional_call
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.utils import logging
from xxhash import xxh3_64

from ffc_ds.config.documents import read_json
from ffc_ds.errors import UserError
from ffc_ds.models.hub_encoder import POOLINGS, HubEncoder, HubEncoderConfig, make_encoder, pool
from ffc_ds.models.places import find_folder, list_files

PREFIX = "hub:"
OWN = ("pooling", "batch_norm")
UNSAID = {"dtype", "torch_dtype", "architectures", "auto_map", "transformers_version"}
OTHER_WEIGHTS = (".bin", ".h5", ".msgpack", ".ckpt", ".pt", ".pth", ".safetensors")  # the last in a folder below
SAME = 1e-3  # of the length of features, by which rounding may change them
CLASS_TOKENS = ("cls_token", "class_embedding")
PLAIN = {  # what an image processor does where neither its file nor its class says it
    **{"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True},
    **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    **dict.fromkeys(("do_flip_channel_order", "include_top", "rescale_offset"), False),
}


def build_hub_encoder(name: str, image_size: int, embedding_size: int, **overrides: Any) -> HubEncoder:
    """The encoder that `name`, hub:OWNER/NAME or hub:FOLDER, describes, under an embedding layer; all with initial
    weights, in fp32 and training mode. Of its parameters those that the embedding does not depend on, such as another
    pooling layer, need no gradient.

    overrides: `OWN` of the `HubEncoderConfig`, or settings of the encoder's own configuration. Raises UserError for
    what is no vision encoder or cannot take images of that size.
    """
    folder = find_folder(name.removeprefix(PREFIX), ["*.json"])
    described = _tower(folder).to_diff_dict()
    own = {key: overrides.pop(key) for key in OWN if key in overrides}
    known = _tower(folder).to_dict()
    if unknown := sorted(overrides.keys() - known):
        raise UserError(
            f"{name} has no setting {', '.join(unknown)}. There are: {', '.join([*OWN, *sorted(known)])}. "
            "`--model.overrides {}` drops those of a file."
        )
    size = {"image_size": image_size} if "image_size" in known else {}
    encoder = {key: value for key, value in (described | overrides | size).items() if key not in UNSAID}
    width, pooling, used = _look(name, encoder, image_size, own.get("pooling"))
    mean, std = normalisation(folder)
    settings = {"encoder": encoder, "width": width, "image_mean": mean, "image_std": std, **own, "pooling": pooling}
    model = HubEncoder(HubEncoderConfig(image_size=image_size, embedding_size=embedding_size, **settings))
    for each, parameter in model.encoder.named_parameters():
        parameter.requires_grad_(each in used)
    return model


def encoder_digest(config: HubEncoderConfig) -> str:
    """Of what the encoder is and what it is shown, wherever it was found."""
    told = config.encoder, config.width, config.pooling, config.image_mean, config.image_std
    return xxh3_64(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def hub_weights(name: str) -> dict[str, Tensor]:
    """What the encoder of that name has learnt, by the names of its own tensors; nothing if there is only its
    configuration. Raises UserError for files that are damaged, of another kind than safetensors, or of another net."""
    folder = find_folder(name.removeprefix(PREFIX), ["*.json", "*.safetensors"])
    if not any(folder.glob("*.safetensors")):
        if others := sorted(file for file in list_files(name.removeprefix(PREFIX)) if file.endswith(OTHER_WEIGHTS)):
            raise UserError(f"{name} has its weights in {others[0]}, which is not read: save them as safetensors.")
        return {}
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        settings = {"dtype": torch.float32, "trust_remote_code": False, "use_safetensors": True}
        encoder, report = AutoModel.from_pretrained(
            folder, config=_tower(folder), output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"The weights of {name} cannot be loaded: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    without = {*report["missing_keys"], *(each for each, *_ in report["mismatched_keys"])}
    if not dict(encoder.named_parameters()).keys() - without:
        raise UserError(f"{name} does not fit: no tensor in its safetensors has name and shape of one of its encoder.")
    return {each: value for each, value in encoder.state_dict().items() if each not in without}


@torch.no_grad()
def check_half_precision(net: HubEncoder) -> None:
    """Raise UserError if `net` cannot have weights in half precision beside buffers in fp32, as DeepSpeed has them."""
    weights = {each: parameter.bfloat16() for each, parameter in net.named_parameters()}
    image = torch.zeros(1, 3, net.config.image_size, net.config.image_size)
    training = net.training
    try:
        functional_call(net.eval(), weights, image)
    except Exception as error:  # as in `_look`
        kind = net.encoder.config.model_type
        remedy = "choose a ds_config without bf16 and fp16."
        raise UserError(
            f"an encoder of type {kind} cannot compute in half precision ({_first_line(error)}): {remedy}"
        ) from error
    finally:
        net.train(training)


def usual_image_size(name: str) -> int | None:
    """Side of the images that the encoder of that name was made for, pixels, as far as its files say."""
    folder = find_folder(name.removeprefix(PREFIX), ["*.json"])
    processor = _processor(folder)
    cropped = processor.get("crop_size") if processor.get("do_center_crop", True) else None
    config = _read(folder / "config.json")
    own = config.get("vision_config", config) if isinstance(config.get("vision_config", config), dict) else config
    for size in (cropped, processor.get("size"), own.get("image_size")):
        sides = list(size.values()) if isinstance(size, dict) else [size]
        if sides and all(type(side) is int and side > 0 for side in sides):
            return min(sides)
    return None


def normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of its image processor, of values from 0 to 1. Raises UserError where it does more
    to them, or says less, than that."""
    processor = _processor(folder)
    kind = _processor_class(processor)
    shown = {key: processor.get(key, getattr(kind, key, plain)) for key, plain in PLAIN.items()}
    factor = shown["rescale_factor"] if shown["do_rescale"] else 1
    if not (_is_number(factor) and isclose(factor, 1 / 255, rel_tol=1e-3)):
        raise UserError(f"{folder}: its image processor rescales by {factor}, where a backbone sees values of 0 to 1.")
    for key in ("do_flip_channel_order", "include_top", "rescale_offset"):
        if shown[key]:
            raise UserError(f"{folder}: its image processor has {key}, which a backbone cannot have: choose another.")
    if not shown["do_normalize"]:
        return [0.0] * 3, [1.0] * 3
    found = [shown[key] or [0.5] * 3 for key in ("image_mean", "image_std")]
    if not all(isinstance(each, list) and len(each) == 3 and all(map(_is_number, each)) for each in found):
        raise UserError(f"{folder}: image_mean and image_std of its image processor are not three numbers each.")
    if min(found[1]) <= 0:
        raise UserError(f"{folder}: image_std of its image processor is {found[1]}; it must be above 0.")
    mean, std = ([float(value) for value in each] for each in found)
    return mean, std


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _processor_class(processor: dict[str, Any]) -> type:
    """That of transformers, where it is known: its attributes are what the file leaves out."""
    name = str(processor.get("image_processor_type") or processor.get("feature_extractor_type"))
    name = name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if not name.endswith("ImageProcessor"):
        return object
    return get_image_processor_class_from_name(f"{name}Pil") or object  # the other one wants torchvision


def _processor(folder: Path) -> dict[str, Any]:
    found = _read(folder / "preprocessor_config.json") or _read(folder / "processor_config.json")
    inner = found.get("image_processor", found)
    return inner if isinstance(inner, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _tower(folder: Path) -> PreTrainedConfig:
    """Configuration of the vision encoder, which may be a part of a model. Raises UserError if there is none."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no model: config.json is missing.")
    if str(_read(folder / "config.json").get("model_type", "")).startswith("ffc_"):
        raise UserError(
            f"{folder} holds a backbone of ours: it is model.weights, and model.name what it was trained as."
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of any kind: what stands there is somebody else's, and may want more packages
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} holds no model that transformers knows: {reason}") from error
    config = getattr(config, "vision_config", config)
    kind = MODEL_MAPPING.get(type(config), None)
    if isinstance(kind, tuple):
        kind = kind[0]
    if getattr(kind, "main_input_name", None) != "pixel_values":
        raise UserError(f"{folder} holds a model of type {config.model_type}, which has no encoder of images.")
    return config


def _look(name: str, config: dict[str, Any], image_size: int, pooling: str | None) -> tuple[int, str, set[str]]:
    """Width of the encoder's features, how they are pooled, and the parameters that they depend on, by a look at what
    it makes of an image."""
    if pooling not in (None, *POOLINGS):
        raise UserError(f"{name}: pooling {pooling} is none of {', '.join(POOLINGS)}.")
    with torch.random.fork_rng(devices=[]):
        try:
            encoder = make_encoder(config).eval()
            image = torch.rand(1, 3, image_size, image_size)
            output = encoder(pixel_values=image)
            last = output.last_hidden_state
            if pooling is None:
                token = any(each.endswith(CLASS_TOKENS) for each, _ in encoder.named_parameters())
                pooling = "spatial" if last.dim() == 4 else "class" if token else "mean"
            pooled = pool(output, pooling)
            again = pool(encoder(pixel_values=image), pooling)
        except Exception as error:  # of any kind: it comes from what a model does with numbers that it was not made for
            raise UserError(f"{name} cannot be used on images of {image_size} pixels: {_first_line(error)}") from error
    if (pooled - again).norm() > SAME * pooled.norm():
        remedy = "an override may switch that off, as {mask_ratio: 0} does for vit_mae."
        raise UserError(f"{name} gives other features of the same image each time: {remedy}")
    if pooled.dim() != 2:
        raise UserError(f"{name}: pooling {pooling} does not suit features of the shape {list(last.shape)}.")
    pooled.sum().backward()
    return pooled.shape[1], pooling, {each for each, p in encoder.named_parameters() if p.grad is not None}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]
