"""Maps the names that timm, transformers and torchvision give to the tensors of a ViT to the names in DualTokenViT.

Knows nothing about the values and shapes of tensors. Reads no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from training.errors import CheckpointError

UNUSED = "unused"  # stands for tensors that DualTokenViT does not need

# Names of tensors in the library and in DualTokenViT. `*` is the number of the block; a name without .weight or .bias
# covers both. A checkpoint may hold no other tensor. `cls_token` and `positions` become the two tokens and pos_embed;
# q, k and v become qkv; scale1 and scale2 become part of proj and fc2.
TIMM = {
    "cls_token": "cls_token",
    "pos_embed": "positions",
    "reg_token": "registers",
    "register_tokens": "registers",  # in the files of DINOv2
    "patch_embed.proj": "patch_embed",
    "norm_pre": "norm_pre",
    "blocks.*.norm1": "blocks.*.norm1",
    "blocks.*.attn.qkv": "blocks.*.qkv",
    "blocks.*.attn.q_norm": "blocks.*.q_norm",
    "blocks.*.attn.k_norm": "blocks.*.k_norm",
    "blocks.*.attn.proj": "blocks.*.proj",
    "blocks.*.ls1.gamma": "blocks.*.scale1",
    "blocks.*.norm2": "blocks.*.norm2",
    "blocks.*.mlp.fc1": "blocks.*.fc1",
    "blocks.*.mlp.fc2": "blocks.*.fc2",
    "blocks.*.mlp.w12": "blocks.*.fc1",  # in the files of DINOv2
    "blocks.*.mlp.w3": "blocks.*.fc2",
    "blocks.*.ls2.gamma": "blocks.*.scale2",
    "mask_token": UNUSED,  # in the files of DINOv2; only its training uses it
    "norm": "norm",
    "fc_norm": "norm",
    "pre_logits.fc": "pre_logits",
    "head": "head",
}
TRANSFORMERS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "positions",
    "embeddings.patch_embeddings.projection": "patch_embed",
    # names in files, the same in every version of transformers
    "encoder.layer.*.layernorm_before": "blocks.*.norm1",
    "encoder.layer.*.attention.attention.query": "blocks.*.q",
    "encoder.layer.*.attention.attention.key": "blocks.*.k",
    "encoder.layer.*.attention.attention.value": "blocks.*.v",
    "encoder.layer.*.attention.output.dense": "blocks.*.proj",
    "encoder.layer.*.layernorm_after": "blocks.*.norm2",
    "encoder.layer.*.intermediate.dense": "blocks.*.fc1",
    "encoder.layer.*.output.dense": "blocks.*.fc2",
    # names of DINOv2
    "embeddings.mask_token": UNUSED,
    "embeddings.register_tokens": "registers",
    "encoder.layer.*.norm1": "blocks.*.norm1",
    "encoder.layer.*.layer_scale1.lambda1": "blocks.*.scale1",
    "encoder.layer.*.norm2": "blocks.*.norm2",
    "encoder.layer.*.mlp.fc1": "blocks.*.fc1",
    "encoder.layer.*.mlp.fc2": "blocks.*.fc2",
    "encoder.layer.*.mlp.weights_in": "blocks.*.fc1",
    "encoder.layer.*.mlp.weights_out": "blocks.*.fc2",
    "encoder.layer.*.layer_scale2.lambda1": "blocks.*.scale2",
    "encoder.layer.*.attention.q_proj": "blocks.*.q",  # in memory, from version 5 of transformers
    "encoder.layer.*.attention.k_proj": "blocks.*.k",
    "encoder.layer.*.attention.v_proj": "blocks.*.v",
    "encoder.layer.*.attention.o_proj": "blocks.*.proj",
    # names in memory, from version 5 of transformers
    "layers.*.layernorm_before": "blocks.*.norm1",
    "layers.*.attention.q_proj": "blocks.*.q",
    "layers.*.attention.k_proj": "blocks.*.k",
    "layers.*.attention.v_proj": "blocks.*.v",
    "layers.*.attention.o_proj": "blocks.*.proj",
    "layers.*.layernorm_after": "blocks.*.norm2",
    "layers.*.mlp.fc1": "blocks.*.fc1",
    "layers.*.mlp.fc2": "blocks.*.fc2",
    "layernorm": "norm",
    "pooler.dense": UNUSED,  # part of ViTModel; the classifier does not use it
    "classifier": "head",
}
CLIP = {  # the image tower of CLIPModel, CLIPVisionModel and others of transformers
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding.weight": "positions",
    "embeddings.position_ids": UNUSED,
    "embeddings.patch_embedding": "patch_embed",
    "pre_layrnorm": "norm_pre",
    "encoder.layers.*.layer_norm1": "blocks.*.norm1",
    "encoder.layers.*.self_attn.q_proj": "blocks.*.q",
    "encoder.layers.*.self_attn.k_proj": "blocks.*.k",
    "encoder.layers.*.self_attn.v_proj": "blocks.*.v",
    "encoder.layers.*.self_attn.out_proj": "blocks.*.proj",
    "encoder.layers.*.layer_norm2": "blocks.*.norm2",
    "encoder.layers.*.mlp.fc1": "blocks.*.fc1",
    "encoder.layers.*.mlp.fc2": "blocks.*.fc2",
    "post_layernorm": "norm",
    # these do not follow the class token, the last LayerNorm and a linear layer alone
    "visual_projection": UNUSED,
    "classifier": UNUSED,
}
TEXT_TOWER = re.compile(
    r"(text_model\.|text_projection\.|logit_scale$)"
)  # of CLIPModel; the image tower does not use it
TORCHVISION = {
    "class_token": "cls_token",
    "encoder.pos_embedding": "positions",
    "conv_proj": "patch_embed",
    "encoder.layers.encoder_layer_*.ln_1": "blocks.*.norm1",
    "encoder.layers.encoder_layer_*.self_attention.in_proj_weight": "blocks.*.qkv.weight",
    "encoder.layers.encoder_layer_*.self_attention.in_proj_bias": "blocks.*.qkv.bias",
    "encoder.layers.encoder_layer_*.self_attention.out_proj": "blocks.*.proj",
    "encoder.layers.encoder_layer_*.ln_2": "blocks.*.norm2",
    "encoder.layers.encoder_layer_*.mlp.0": "blocks.*.fc1",
    "encoder.layers.encoder_layer_*.mlp.3": "blocks.*.fc2",
    "encoder.layers.encoder_layer_*.mlp.linear_1": "blocks.*.fc1",  # in the files torchvision publishes
    "encoder.layers.encoder_layer_*.mlp.linear_2": "blocks.*.fc2",
    "encoder.ln": "norm",
    "heads.pre_logits": "pre_logits",
    "heads.head": "head",
}
LIBRARIES = {  # by the prefix of the names of the patch embedding
    "patch_embed.": ("timm", TIMM),
    "embeddings.patch_embeddings.": ("transformers", TRANSFORMERS),
    "embeddings.patch_embedding.": ("transformers", CLIP),
    "conv_proj.": ("torchvision", TORCHVISION),
}

# Patterns of the names of tensors that only other architectures have, and what these architectures have. The first
# pattern that fits decides the message.
OTHER_ARCHITECTURES = (
    (r"dist_token|distillation|head_dist", "a distillation token, which a second classifier reads (distilled DeiT)"),
    (r"relative_position|rel_pos", "relative position biases (BEiT, Swin, ViT-RelPos)"),
    (r"rope|freqs", "rotary position embeddings (RoPE-ViT)"),
    (
        r"^decoder\.|\.decoder\.",
        "the decoder of a masked autoencoder (ViT-MAE): choose a fine-tuned model, or its encoder",
    ),
    (r"attn_pool|head\.probe|MAPHead", "pooling by attention (SigLIP, CoCa)"),
    (r"patch_embed\.(backbone|conv|stem)|conv_bn_relu|patch_embed\d", "a convolutional stem or several stages"),
    (
        r"(^|\.)stages\.\d+\.|^(layers|network|blocks)\.\d+\.(blocks|downsample|proj|\d+)\.",
        "stages of several resolutions (Swin, PVT, Hiera)",
    ),
    (r"proj_l\.|token_only", "talking heads and class attention (CaiT)"),
    (r"attn\.temperature", "attention over channels (XCiT)"),
    (r"attn\.lambda_[kq]", "differential attention"),
    (r"attn\.norm|mlp\.norm|inner_attn_ln|ffn_ln", "a LayerNorm inside attention or MLP (BEiT-3, EVA-02)"),
    (r"\.q_bias|\.v_bias", "biases of queries and values alone (BEiT, EVA)"),
    (r"fc1_g|w1\.|gate_proj", "an MLP with a separate gate (EVA-02, AIMv2, DINOv3)"),
    (r"\.attns\.|\.ffns\.|in_proj\.weight", "attention and MLP side by side (parallel blocks)"),
    (r"\.lambda_[12]$", "the LayerScale of BEiT and Data2Vec"),
    (
        r"\.gamma_[12]$",
        "LayerScale under names that RoPE-ViT, DINOv3 and the files of DeiT-III share (for DeiT-III: timm:deit3_…)",
    ),
    (r"text_model|text_projection|logit_scale|token_embedding", "a text tower"),
)


def architecture_named(tensors: Iterable[str]) -> str | None:
    """Returns a clause on the part that another architecture has, such as "it has …"; None: no known part."""
    for pattern, part in OTHER_ARCHITECTURES:
        if found := next((name for name in sorted(tensors) if re.search(pattern, name)), None):
            return f"it has {part}, the tensor {found!r}"
    return None


def our_names(tensors: Iterable[str], file: Path) -> tuple[str, dict[str, str]]:
    """Returns the library that uses these names, and a map from names in DualTokenViT to names in the file.

    Leaves out tensors that the features do not need.

    tensors: the names of the tensors in the file. file: the path for error messages. Raises CheckpointError if none of
    the three libraries uses these names, or if a tensor does not exist in a plain ViT.
    """
    found = next(((name, marker) for marker in LIBRARIES for name in tensors if marker in name), None)
    if found is None and (other := architecture_named(tensors)):
        raise CheckpointError(f"{file} is not a ViT that Tureen supports: {other}")
    if found is None:
        raise CheckpointError(
            f"{file} is no Vision Transformer of timm, transformers or torchvision: none of its tensors has a name "
            f"with {', '.join(LIBRARIES)}…"
        )
    marked, marker = found
    prefix = marked[: marked.index(marker)]  # "vit." in transformers, for all but the classifier
    library, table = LIBRARIES[marker]
    names: dict[str, str] = {}
    for name in sorted(tensors):
        if table is CLIP and TEXT_TOWER.match(name):
            continue
        ours = _our_name(name.removeprefix(prefix), table)
        if ours is not None and ours.startswith(UNUSED):
            continue
        if ours is None or ours in names:
            reason = architecture_named(tensors) or f"the tensor {name!r} does not exist in one"
            raise CheckpointError(
                f"{file} is not a ViT that Tureen supports: {reason}, and the model needs it: choose a model of "
                f"{library} without it"
            )
        names[ours] = name
    return library, names


def _our_name(name: str, table: Mapping[str, str]) -> str | None:
    block = re.search(r"\d+", name)  # the first number is that of the block in all three libraries
    general = re.sub(r"\d+", "*", name, count=1)
    stem, _, leaf = general.rpartition(".")
    if general in table:
        ours = table[general]
    elif stem in table and leaf in ("weight", "bias"):
        ours = f"{table[stem]}.{leaf}"
    else:
        return None
    return ours if block is None else ours.replace("*", block.group())
