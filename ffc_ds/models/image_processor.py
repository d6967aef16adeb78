"""What turns images into a backbone's input, with the pixels that training sees."""

import os

import numpy as np
from PIL import Image
from transformers.image_utils import ChannelDimension
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from ffc_ds.data.rgb import upright_rgb


class FaceImageProcessor(ViTImageProcessorPil):
    """Pillow images, paths, or RGB arrays, stretched (bilinear with antialiasing), to float [3, S, S], x / 127.5 - 1.

    ViT's own turns no image upright and takes 16 bits for 8.
    """

    def fetch_images(self, image_url_or_urls):
        if isinstance(image_url_or_urls, os.PathLike):
            image_url_or_urls = os.fspath(image_url_or_urls)
        if isinstance(image_url_or_urls, str) and os.path.isfile(image_url_or_urls):
            return Image.open(image_url_or_urls)
        return super().fetch_images(image_url_or_urls)

    def process_image(self, image, **kwargs) -> np.ndarray:
        if isinstance(image, Image.Image):
            image, kwargs["input_data_format"] = upright_rgb(image), ChannelDimension.LAST
        return super().process_image(image, **kwargs)


def image_processor(image_size: int) -> FaceImageProcessor:
    """For a backbone whose square input has that side in pixels."""
    size = {"height": image_size, "width": image_size}
    code = {"AutoImageProcessor": f"image_processor.{FaceImageProcessor.__name__}"}
    return FaceImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True, auto_map=code)
