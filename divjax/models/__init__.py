"""Reference models; everything else sees (params, apply), of a language model `LanguageModel`."""

from divjax.models._attention import rotary
from divjax.models.decoder import Cache, Decoder, gated_mlp, layer_norm, plain_mlp, rms_norm
from divjax.models.functional import Apply, split, split_with_carry
from divjax.models.language import (
    LanguageModel,
    LogitTransform,
    gpt,
    language_model,
    llama,
    logits,
    truncate,
)
from divjax.models.nets import CNN, MLP, Norm, ResNet, batch_norm, dropout, group_norm

__all__ = [
    "CNN",
    "MLP",
    "Apply",
    "Cache",
    "Decoder",
    "LanguageModel",
    "LogitTransform",
    "Norm",
    "ResNet",
    "batch_norm",
    "dropout",
    "gated_mlp",
    "gpt",
    "group_norm",
    "language_model",
    "layer_norm",
    "llama",
    "logits",
    "plain_mlp",
    "rms_norm",
    "rotary",
    "split",
    "split_with_carry",
    "truncate",
]
