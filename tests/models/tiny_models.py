"""A tiny HuBERT in the words of the official config, and noise to give it."""

import torch
from torch import Tensor

from spiritrt.models.hubert import Hubert, HubertConfig

HOP, SHORTEST = 640, 1280
TINY = {
    "conv_feature_layers": "[(8,10,5)] + [(8,3,2)] * 4 + [(8,2,2)] * 3",
    "encoder_layers": 2,
    "encoder_embed_dim": 12,
    "encoder_ffn_embed_dim": 16,
    "encoder_attention_heads": 3,
    "conv_pos": 6,
    "conv_pos_groups": 3,
}


def tiny(normalize: bool = False, output_layer: int = 2, **model: object) -> dict[str, object]:
    return {"model_cfg": TINY | model, "task_cfg": {"normalize": normalize}, "output_layer": output_layer}


def tiny_hubert(seed: int = 0, **model: object) -> Hubert:
    """A tiny HuBERT in eval mode in which every weight matters, norms and running statistics included."""
    torch.manual_seed(seed)
    hubert = Hubert(HubertConfig.from_official(tiny(**model))).eval()
    with torch.no_grad():
        for name, value in hubert.state_dict().items():
            if value.is_floating_point() and value.dim() == 1:
                value.copy_(
                    torch.rand_like(value) + 0.5 if "running_var" in name else value + torch.randn_like(value) / 4
                )
    return hubert


def noise(samples: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1
