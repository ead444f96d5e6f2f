"""No autoencoder: the network sees the pixels themselves."""

from torch import Tensor


class Pixels:
    """Images as they are."""

    channels = 3
    factor = 1

    def encode(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        return latents_BCHW

    def fingerprint(self) -> str:
        return "pixels"
