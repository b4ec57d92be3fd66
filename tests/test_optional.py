"""The stand-in for torchvision is enough for timm's vision transformers."""

import optional
import pytest


@pytest.mark.parity
def test_timm_works_without_torchvision():
    torch, timm = optional.torch(), optional.timm()
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 192)
