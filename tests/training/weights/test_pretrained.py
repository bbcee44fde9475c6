"""Third-party checkpoints, compared with the installed libraries and with a reference model."""

import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from tests.randomised import randomised
from training.checkpoint import Checkpoint, save_checkpoint
from training.data.datasets import Images
from training.errors import CheckpointError
from training.models.shapes import ViTConfig
from training.models.vit import DualTokenViT
from training.recipes import DIGITS
from training.weights.library_settings import (
    CLIP,
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    HEADS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LAYER_SCALE,
    VIT,
)
from training.weights.pretrained import load_pretrained, resample_positions
from tureen.preprocess import PreprocessSpec

# The same float32 operations, some summed in another order; logits are of the order of 1 and differ by up to 1.2e-6
# here. The tanh approximation of GELU moves them by 2e-4. A wrong ε may not show, so that it is compared by itself.
ROUNDING = 1e-5

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
SHAPE = {"width": 192, "heads": 3, "depth": 2, "hidden": 230, "patch": 4, "side": 3, "classes": 5}
TIMM_SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "num_classes": 7}
TRANSFORMERS_SHAPE = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 100,
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def assert_same_logits(pretrained, original, *, mean, std):
    """Compare the logits on random images at β = 0, ½ and 1; the original gets normalised images."""
    size = pretrained.model.config.image_size
    images = torch.rand(6, 3, size, size)
    with torch.no_grad():
        expected = original((images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
        actual = pretrained.model(images, torch.tensor([0, 0.5, 1, 0, 0.5, 1]))
    assert expected.std() > 0.1
    assert (actual - expected).abs().max() <= ROUNDING


def timm_weights(*, width, heads, depth, hidden, patch, side, classes):
    """Return random weights with the names and shapes of VisionTransformer of timm."""

    def vector(size, about=0.0):
        return about + 0.1 * torch.randn(size)

    def matrix(*shape):
        return torch.randn(*shape) * math.prod(shape[1:]) ** -0.5

    weights = {
        "cls_token": torch.randn(1, 1, width),
        "pos_embed": torch.randn(1, 1 + side**2, width),
        "patch_embed.proj.weight": matrix(width, 3, patch, patch),
        "patch_embed.proj.bias": vector(width),
        "norm.weight": vector(width, about=1.0),
        "norm.bias": vector(width),
        "head.weight": matrix(classes, width),
        "head.bias": vector(classes),
    }
    for i in range(depth):
        for norm in ("norm1", "norm2"):
            weights |= {f"blocks.{i}.{norm}.weight": vector(width, 1.0), f"blocks.{i}.{norm}.bias": vector(width)}
        for name, rows, columns in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", hidden, width),
            ("mlp.fc2", width, hidden),
        ):
            weights |= {f"blocks.{i}.{name}.weight": matrix(rows, columns), f"blocks.{i}.{name}.bias": vector(rows)}
    return weights


def renamed(weights, names):
    """Return the weights with each pattern in their names replaced in turn."""
    result = {}
    for name, tensor in weights.items():
        for before, after in names:
            name = name.replace(before, after)
        result[name] = tensor
    return result


def transformers_weights(weights):
    """Return the weights with the names of transformers in files; all but the classifier have a prefix."""
    split = {}
    for name, tensor in weights.items():
        if "attn.qkv" in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                split[name.replace("attn.qkv", f"attention.attention.{part}")] = third
        else:
            split[name] = tensor
    names = [
        ("blocks.", "encoder.layer."),
        ("attn.proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("cls_token", "embeddings.cls_token"),
        ("pos_embed", "embeddings.position_embeddings"),
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ]
    named = renamed({name.replace("norm.", "layernorm."): tensor for name, tensor in split.items()}, names)
    return {
        name.replace("head.", "classifier.") if name.startswith("head.") else f"vit.{name}": tensor
        for name, tensor in named.items()
    }


def transformers_5_weights(weights):
    """Return the weights with the names of transformers in memory, from version 5."""
    names = [
        ("encoder.layer.", "layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ]
    return renamed(transformers_weights(weights), names)


def torchvision_weights(weights, mlp=("mlp.0", "mlp.3")):
    """Return the weights with the names of torchvision."""
    names = [
        ("cls_token", "class_token"),
        ("pos_embed", "encoder.pos_embedding"),
        ("patch_embed.proj", "conv_proj"),
        ("blocks.", "encoder.layers.encoder_layer_"),
        ("norm1", "ln_1"),
        ("norm2", "ln_2"),
        ("norm.", "encoder.ln."),
        ("attn.qkv.", "self_attention.in_proj_"),
        ("attn.proj", "self_attention.out_proj"),
        ("mlp.fc1", mlp[0]),
        ("mlp.fc2", mlp[1]),
        ("head.", "heads.head."),
    ]
    return renamed(weights, names)


def published_torchvision_weights(weights):
    """Return the weights with the names in the files of torchvision, which are older than its code."""
    return torchvision_weights(weights, mlp=("mlp.linear_1", "mlp.linear_2"))


LAYOUTS = [
    timm_weights,
    transformers_weights,
    transformers_5_weights,
    torchvision_weights,
    published_torchvision_weights,
]


def saved(folder, weights, **files):
    """Write the weights as a .safetensors file with JSON files beside it; returns the path."""
    safetensors.torch.save_file(
        {name: tensor.contiguous().clone() for name, tensor in weights.items()}, folder / "model.safetensors"
    )
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder / "model.safetensors"


def plain_vit(weights, heads):
    """The reference ViT (Dosovitskiy et al., ICLR 2021) with the weights of timm: normalised images to logits."""

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def attention(x, block):
        queries, keys, values = (
            part.unflatten(2, (heads, -1)).transpose(1, 2) for part in linear(x, f"{block}.attn.qkv").chunk(3, dim=2)
        )
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])
        return linear((scores.softmax(dim=-1) @ values).transpose(1, 2).flatten(2), f"{block}.attn.proj")

    def logits(images):
        embed = weights["patch_embed.proj.weight"]
        patches = F.conv2d(images, embed, weights["patch_embed.proj.bias"], stride=embed.shape[-1])
        patches = patches.flatten(2).transpose(1, 2)
        x = torch.cat([weights["cls_token"].expand(len(images), -1, -1), patches], dim=1) + weights["pos_embed"]
        for i in range(sum(name.endswith("norm1.weight") for name in weights)):
            block = f"blocks.{i}"
            x = x + attention(norm(x, f"{block}.norm1"), block)
            x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        return linear(norm(x, "norm")[:, 0], "head")

    return logits


# Against the libraries


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"global_pool": "avg"},
        {"global_pool": "avg", "fc_norm": False},
        {"fc_norm": True},
        {"no_embed_class": True},
        {"qk_norm": True},
        {"reg_tokens": 4, "no_embed_class": True},
        {"reg_tokens": 4, "init_values": 0.1},
        {"reg_tokens": 1, "global_pool": "avg"},
        {"qkv_bias": False},
        {"mlp_ratio": 3.3, "num_heads": 2, "dynamic_img_size": True, "drop_path_rate": 0.1},
        {"act_layer": "gelu", "norm_layer": "layernorm"},
    ],
    ids=str,
)
def test_a_model_of_timm_keeps_its_logits(timm, tmp_path, arguments):
    original = randomised(timm.create_model("vit_base_patch16_224", **TIMM_SHAPE | arguments))
    original.pretrained_cfg |= {"mean": MEAN, "std": STD}
    timm.models.save_for_hf(original, tmp_path, safe_serialization=True)
    pretrained = load_pretrained(tmp_path)
    assert (pretrained.library, pretrained.has_new_head, pretrained.assumed) == ("timm", False, ())
    assert_same_logits(pretrained, original, mean=MEAN, std=STD)


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize(
    "architecture",
    ["deit3_small_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "flexivit_small"],
)
def test_a_published_family_of_timm_keeps_its_logits_at_any_image_size(timm, tmp_path, architecture, size):
    original = randomised(timm.create_model(architecture, **TIMM_SHAPE))
    timm.models.save_for_hf(original, tmp_path, safe_serialization=True)
    original.set_input_size(img_size=size)
    mean, std = (HALF, HALF) if architecture == "flexivit_small" else (IMAGENET_MEAN, IMAGENET_STD)
    assert_same_logits(load_pretrained(tmp_path, image_size=size), original, mean=mean, std=std)


def test_the_file_of_the_authors_of_dinov2_keeps_its_logits(timm, tmp_path):
    original = randomised(timm.create_model("vit_small_patch14_dinov2", depth=1, img_size=28, num_classes=7))
    pretrained = load_pretrained(saved(tmp_path, original.state_dict() | {"mask_token": torch.randn(1, 384)}))
    assert "deviation of ImageNet" in pretrained.assumed[1]
    assert_same_logits(pretrained, original, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def test_the_file_of_the_authors_of_dinov2_has_a_position_for_the_class_token_and_none_for_registers(timm, tmp_path):
    original = randomised(timm.create_model("vit_small_patch14_reg4_dinov2", depth=1, img_size=28, num_classes=7))
    weights = renamed(original.state_dict(), [("reg_token", "register_tokens")])
    position = torch.randn(1, 1, 384)  # timm adds it to the class token when it reads this file
    weights["cls_token"] = weights["cls_token"] - position
    weights["pos_embed"] = torch.cat([position, weights["pos_embed"]], dim=1)
    assert_same_logits(load_pretrained(saved(tmp_path, weights)), original, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def test_a_published_architecture_of_timm_keeps_its_logits_without_its_config(timm, tmp_path):
    original = randomised(timm.create_model("vit_tiny_patch16_224"))
    torch.save(original.state_dict(), tmp_path / "vit_tiny.pth")
    pretrained = load_pretrained(tmp_path / "vit_tiny.pth")
    assert "3 attention heads" in pretrained.assumed[0]
    assert_same_logits(pretrained, original, mean=HALF, std=HALF)


@pytest.mark.parametrize("arguments", [{}, {"qkv_bias": False, "layer_norm_eps": 0.01}], ids=str)
@pytest.mark.parametrize("saved_by", ["save_pretrained", "state_dict"])
def test_a_model_of_transformers_keeps_its_logits(transformers, tmp_path, saved_by, arguments):
    config = transformers.ViTConfig(
        **TRANSFORMERS_SHAPE | arguments,
        num_labels=7,
    )
    original = randomised(transformers.ViTForImageClassification(config))
    original.save_pretrained(tmp_path)
    if saved_by == "state_dict":
        saved(tmp_path, original.state_dict())
    transformers.ViTImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    pretrained = load_pretrained(tmp_path)
    assert (pretrained.library, pretrained.has_new_head, pretrained.assumed) == ("transformers", False, ())
    assert_same_logits(pretrained, lambda images: original(images).logits, mean=MEAN, std=STD)


def test_the_features_of_a_headless_model_of_transformers_are_kept(transformers, tmp_path):
    original = randomised(transformers.ViTModel(transformers.ViTConfig(**TRANSFORMERS_SHAPE)))
    original.save_pretrained(tmp_path)
    pretrained = load_pretrained(tmp_path, classes=7)
    assert pretrained.has_new_head
    head = randomised(pretrained.model.head)
    assert_same_logits(pretrained, lambda images: head(original(images).last_hidden_state[:, 0]), mean=HALF, std=HALF)


@pytest.mark.parametrize("saved_by", ["save_pretrained", "state_dict"])
@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])
def test_the_features_of_dinov2_of_transformers_are_kept(transformers, tmp_path, saved_by, kind):
    config = getattr(transformers, f"{kind}Config")(**TRANSFORMERS_SHAPE)
    original = randomised(getattr(transformers, f"{kind}Model")(config))
    original.save_pretrained(tmp_path)
    if saved_by == "state_dict":
        saved(tmp_path, original.state_dict())
    transformers.BitImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    pretrained = load_pretrained(tmp_path, classes=7)
    assert (pretrained.library, pretrained.has_new_head, pretrained.assumed) == ("transformers", True, ())
    head = randomised(pretrained.model.head)
    assert_same_logits(pretrained, lambda images: head(original(images).pooler_output), mean=MEAN, std=STD)


def test_the_classifier_of_dinov2_that_reads_two_tokens_is_replaced(transformers, tmp_path):
    config = transformers.Dinov2Config(**TRANSFORMERS_SHAPE, num_labels=7)
    original = randomised(transformers.Dinov2ForImageClassification(config))
    original.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no linear classifier of one token"):
        load_pretrained(tmp_path)
    pretrained = load_pretrained(tmp_path, classes=7)
    assert pretrained.has_new_head
    head, features = randomised(pretrained.model.head), original.dinov2
    assert_same_logits(
        pretrained, lambda images: head(features(images).pooler_output), mean=IMAGENET_MEAN, std=IMAGENET_STD
    )


def test_the_gated_mlp_of_dinov2_is_kept_from_each_library(timm, transformers, tmp_path):
    shape = {"depth": 1, "img_size": 28, "num_classes": 7, "embed_dim": 192, "num_heads": 3}
    original = randomised(timm.create_model("vit_giant_patch14_dinov2", **shape))
    for names in ([], [("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3")]):  # the second: the file of the authors
        path = saved(tmp_path, renamed(original.state_dict(), names))
        assert_same_logits(load_pretrained(path), original, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    original = randomised(
        transformers.Dinov2Model(transformers.Dinov2Config(**TRANSFORMERS_SHAPE, use_swiglu_ffn=True))
    )
    original.save_pretrained(tmp_path)
    pretrained = load_pretrained(tmp_path, classes=7)
    head = randomised(pretrained.model.head)
    assert_same_logits(
        pretrained, lambda images: head(original(images).pooler_output), mean=IMAGENET_MEAN, std=IMAGENET_STD
    )


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("architecture", ["vit_base_patch32_clip_224", "vit_base_patch32_clip_quickgelu_224"])
def test_the_image_tower_of_clip_of_timm_keeps_its_logits(timm, tmp_path, architecture, size):
    original = randomised(timm.create_model(architecture, **TIMM_SHAPE))
    timm.models.save_for_hf(original, tmp_path, safe_serialization=True)
    original.set_input_size(img_size=size)
    pretrained = load_pretrained(tmp_path, image_size=size)
    assert pretrained.model.config.norm_eps == 1e-5
    assert_same_logits(pretrained, original, mean=CLIP_MEAN, std=CLIP_STD)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize(
    "kind", ["CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel", "CLIPForImageClassification"]
)
def test_the_image_tower_of_clip_of_transformers_keeps_its_features(transformers, tmp_path, kind, activation):
    tower = TRANSFORMERS_SHAPE | {"hidden_act": activation}
    if kind.startswith("CLIPVision"):
        original = getattr(transformers, kind)(transformers.CLIPVisionConfig(**tower))
    else:
        text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40}
        original = getattr(transformers, kind)(transformers.CLIPConfig(vision_config=tower, text_config=text))
    randomised(original).save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    pretrained = load_pretrained(tmp_path, classes=7)
    assert (pretrained.has_new_head, pretrained.assumed) == (True, ())
    head, features = randomised(pretrained.model.head), getattr(original, "vision_model", original)
    assert_same_logits(pretrained, lambda images: head(features(images).pooler_output), mean=MEAN, std=STD)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_model_of_torchvision_keeps_its_logits(torchvision, tmp_path, suffix):
    original = randomised(torchvision.models.VisionTransformer(32, 8, 2, 3, 192, 100, num_classes=7))
    if suffix == ".safetensors":
        path = saved(tmp_path, original.state_dict())
    else:
        path = tmp_path / "vit.pth"
        torch.save(original.state_dict(), path)
    pretrained = load_pretrained(path)
    assert (pretrained.library, pretrained.has_new_head) == ("torchvision", False)
    assert_same_logits(pretrained, original, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@pytest.mark.parametrize("size", [16, 32, 56])
def test_another_image_size_makes_the_same_model_as_in_timm(timm, tmp_path, size):
    original = randomised(timm.create_model("vit_base_patch16_224", **TIMM_SHAPE))
    timm.models.save_for_hf(original, tmp_path, safe_serialization=True)
    original.set_input_size(img_size=size)
    assert_same_logits(load_pretrained(tmp_path, image_size=size), original, mean=HALF, std=HALF)
    expected = timm.layers.resample_abs_pos_embed(torch.ones(1, 17, 4).cumsum(1), [5, 5])
    torch.testing.assert_close(
        resample_positions(torch.ones(1, 17, 4).cumsum(1)[:, 1:], 5), expected[:, 1:], rtol=0, atol=0
    )


@pytest.mark.parametrize(
    ("architecture", "arguments", "part", "tensor"),
    [
        ("deit_tiny_distilled_patch16_224", {}, "distillation token", "dist_token"),
        ("vit_base_patch16_siglip_224", {}, "pooling by attention", "attn_pool"),
        ("vit_base_patch16_siglip_gap_224", {}, "class token", ""),
        ("vit_base_patch16_224", {"norm_layer": "rmsnorm", "embed_dim": 192}, "RMSNorm", "blocks.0.norm1.bias"),
        ("beit_base_patch16_224", {}, "relative position biases", "relative_position_bias_table"),
        ("beit3_base_patch16_224", {}, "LayerNorm inside", "attn.norm"),
        ("eva02_tiny_patch14_224", {}, "biases of queries and values", "attn.q_bias"),
        ("eva02_base_patch14_224", {}, "LayerNorm inside", "mlp.norm"),
        ("vit_small_patch16_dinov3", {}, "DINOv3", "gamma_1"),
        ("vit_small_patch16_rope_ape_224", {}, "RoPE-ViT", "gamma_1"),
        ("vit_small_patch16_rope_mixed_224", {}, "rotary", "rope.freqs"),
        ("aimv2_large_patch14_224", {}, "separate gate", "fc1_g"),
        ("vit_relpos_small_patch16_224", {}, "relative position biases", "rel_pos"),
        ("vit_small_patch16_18x2_224", {}, "side by side", "attns"),
        ("vit_tiny_r_s16_p8_224", {"patch_size": 1}, "convolutional stem", "patch_embed.backbone"),
        ("cait_xxs24_224", {}, "talking heads", "proj_l"),
        ("xcit_nano_12_p16_224", {}, "attention over channels", "temperature"),
        (
            "swin_tiny_patch4_window7_224",
            {"depths": (1, 1), "num_heads": (2, 2), "window_size": 4, "depth": None},
            "Swin",
            "layers.0",
        ),
        ("convnext_atto", None, "several resolutions", "stages.0"),
        ("hiera_tiny_224", None, "Hiera", "blocks.1.proj"),
    ],
)
def test_another_kind_of_model_of_timm_is_refused_with_the_part_that_it_has_or_lacks(
    timm, tmp_path, architecture, arguments, part, tensor
):
    with torch.device("meta") if arguments is None else nullcontext():
        original = timm.create_model(architecture, **{} if arguments is None else TIMM_SHAPE | arguments)
    weights = {name: torch.zeros(1) if arguments is None else value for name, value in original.state_dict().items()}
    with pytest.raises(CheckpointError, match=part) as caught:
        load_pretrained(saved(tmp_path, weights))
    assert tensor in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("DeiT", "distillation_token"),
        ("Beit", "lambda_1"),
        ("ViTMAE", "decoder of a masked autoencoder"),
        ("ViTMSN", "vit_msn"),
        ("IJepa", "no class token"),
        ("Siglip", "pooling by attention"),
    ],
)
def test_another_kind_of_model_of_transformers_is_refused_with_the_part_that_it_has_or_lacks(
    transformers, tmp_path, kind, part
):
    if kind == "Siglip":
        config, model = transformers.SiglipVisionConfig(**TRANSFORMERS_SHAPE), transformers.SiglipVisionModel
    else:
        config = getattr(transformers, f"{kind}Config")(**TRANSFORMERS_SHAPE)
        task = "ForPreTraining" if kind == "ViTMAE" else "ForImageClassification"
        model = getattr(transformers, f"{kind}{task}")
    model(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=part):
        load_pretrained(tmp_path)


def test_a_convolutional_stem_of_torchvision_is_refused_by_its_tensor(torchvision, tmp_path):
    stem = [torchvision.models.vision_transformer.ConvStemConfig(16, 3, 8)]
    original = torchvision.models.VisionTransformer(32, 8, 1, 3, 192, 100, conv_stem_configs=stem)
    with pytest.raises(CheckpointError, match="conv_bn_relu_0"):
        load_pretrained(saved(tmp_path, original.state_dict()))


def test_assumed_values_are_the_defaults_of_the_library(timm, transformers, torchvision):
    sizes = ("tiny_patch16", "small_patch16", "base_patch16", "large_patch14", "huge_patch14", "giant_patch14")
    for size in (*sizes, "gigantic_patch14"):
        with torch.device("meta"):
            model = timm.create_model(f"vit_{size}_224", depth=1)
        assert model.blocks[0].attn.num_heads == HEADS.get(model.embed_dim, model.embed_dim // 64)
        assert model.norm.eps == 1e-6
        assert model.default_cfg["mean"] == model.default_cfg["std"] == HALF
    assert transformers.ViTConfig().layer_norm_eps == VIT.transformers_eps
    assert transformers.Dinov2Config().layer_norm_eps == LAYER_SCALE.transformers_eps
    assert transformers.CLIPVisionConfig().layer_norm_eps == CLIP.transformers_eps
    assert transformers.CLIPVisionConfig().hidden_act == "quick_gelu"
    clip = transformers.CLIPImageProcessor()
    assert (tuple(clip.image_mean), tuple(clip.image_std)) == (CLIP_MEAN, CLIP_STD)
    processor = transformers.ViTImageProcessor()
    assert tuple(processor.image_mean) == tuple(processor.image_std) == HALF
    view = torchvision.models.ViT_B_16_Weights.DEFAULT.transforms()
    assert (tuple(view.mean), tuple(view.std)) == (IMAGENET_MEAN, IMAGENET_STD)


# Made by hand, so that they run where no library is installed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_the_right_names_and_shapes_keep_their_logits(tmp_path, layout):
    weights = timm_weights(**SHAPE)
    named = weights if layout is timm_weights else layout(weights)
    files = {"preprocessor_config": {"image_mean": MEAN, "image_std": STD}, "config": {"layer_norm_eps": 1e-6}}
    pretrained = load_pretrained(saved(tmp_path, named, **files))
    mean, std = {
        "timm": (HALF, HALF),
        "transformers": (MEAN, STD),
        "torchvision": (IMAGENET_MEAN, IMAGENET_STD),
    }[pretrained.library]
    assert_same_logits(pretrained, plain_vit(weights, SHAPE["heads"]), mean=mean, std=std)
    assert pretrained.model.config.norm_eps == 1e-6


def test_both_tokens_start_as_the_class_token_with_its_position_and_train_apart(tmp_path):
    weights = timm_weights(**SHAPE)
    model = load_pretrained(saved(tmp_path, weights)).model
    start = (weights["cls_token"] + weights["pos_embed"][:, :1]).flatten()
    assert torch.equal(model.clean_token, start)
    assert torch.equal(model.robust_token, start)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        model.robust_token.zero_()
    assert torch.equal(model.clean_token, start)


def test_the_shape_is_read_off_the_tensors(tmp_path):
    config = load_pretrained(saved(tmp_path, timm_weights(**SHAPE))).model.config
    assert (config.image_size, config.patch_size, config.classes) == (12, 4, 5)
    assert (config.width, config.depth, config.heads) == (192, 2, 3)
    assert (config.adapter, config.pool, config.norm_after_pool, config.norm_eps) == ("token", "token", False, 1e-6)


@pytest.mark.parametrize("hidden", [115, 122, 230, 384])
def test_a_hidden_layer_of_any_width_fits(tmp_path, hidden):
    """In floating point 224 × (115 / 224) is 114.99…, which the model would round down to 114."""
    path = saved(
        tmp_path,
        timm_weights(**SHAPE | {"width": 224, "hidden": hidden, "heads": 4}),
        config={"num_attention_heads": 4},
    )
    assert load_pretrained(path).model.blocks[0].fc1.out_features == hidden


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (1280, 16)])
def test_heads_are_those_of_the_published_model_of_that_width(tmp_path, width, heads):
    weights = timm_weights(**SHAPE | {"width": width, "hidden": 8, "depth": 1})
    pretrained = load_pretrained(saved(tmp_path, weights))
    assert pretrained.model.config.heads == heads
    assert pretrained.assumed[0].startswith(f"{heads} attention heads")


@pytest.mark.parametrize("config", [{"num_attention_heads": 2}, {"model_args": {"num_heads": 2}}], ids=str)
def test_the_heads_in_config_json_override_those_of_the_width(tmp_path, config):
    path = saved(tmp_path, timm_weights(**SHAPE), config=config)
    assert load_pretrained(path).model.config.heads == 2


@pytest.mark.parametrize("width", [64, 200])
def test_an_unknown_number_of_heads_is_required(tmp_path, width):
    weights = timm_weights(**SHAPE | {"width": width})
    with pytest.raises(CheckpointError, match="num_attention_heads"):
        load_pretrained(saved(tmp_path, weights))
    path = saved(tmp_path, weights, config={"num_attention_heads": 4})
    assert load_pretrained(path).model.config.heads == 4


def test_values_without_a_file_are_reported_as_assumed(tmp_path):
    weights = timm_weights(**SHAPE)
    for layout, assumed in ((transformers_weights, ["heads", "mean", "ε"]), (torchvision_weights, ["heads"])):
        facts = load_pretrained(saved(tmp_path, layout(weights))).assumed
        assert len(facts) == len(assumed)
        assert all(word in fact for word, fact in zip(assumed, facts, strict=True))


@pytest.mark.parametrize(
    ("preprocessor", "mean", "std"),
    [
        ({}, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ({"image_mean": MEAN, "image_std": STD}, MEAN, STD),
        ({"image_mean": MEAN, "image_std": STD, "do_normalize": False}, (0, 0, 0), (1, 1, 1)),
        ({"do_rescale": False, "do_normalize": False}, (0, 0, 0), (1 / 255,) * 3),
        ({"rescale_factor": 2 / 255, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}, (0.5,) * 3, (0.5,) * 3),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51] * 3}, (0.5,) * 3, (0.2,) * 3),
    ],
)
def test_the_preprocessing_of_transformers_becomes_a_mean_and_deviation_of_images_in_0_to_1(
    tmp_path, preprocessor, mean, std
):
    weights = transformers_weights(timm_weights(**SHAPE))
    config = load_pretrained(saved(tmp_path, weights, preprocessor_config={"size": 12} | preprocessor)).model.config
    assert config.mean == pytest.approx(mean)
    assert config.std == pytest.approx(std)


@pytest.mark.parametrize("key", ["pretrained_cfg", None])
def test_mean_and_deviation_of_timm_are_read_in_either_form_of_its_config(tmp_path, key):
    statistics = {"mean": MEAN, "std": STD}
    path = saved(tmp_path, timm_weights(**SHAPE), config=statistics if key is None else {key: statistics})
    config = load_pretrained(path).model.config
    assert (config.mean, config.std) == (MEAN, STD)


def test_other_classes_start_with_a_fresh_head_that_an_attack_can_follow(tmp_path):
    path = saved(tmp_path, timm_weights(**SHAPE))
    assert not load_pretrained(path, classes=5).has_new_head
    fresh = load_pretrained(path, classes=10)
    assert fresh.has_new_head
    assert fresh.model.head.weight.shape == (10, 192)
    assert fresh.model.head.weight.std() > 0
    torch.testing.assert_close(fresh.model.blocks.state_dict(), load_pretrained(path).model.blocks.state_dict())


def test_a_missing_classifier_is_required(tmp_path):
    weights = {name: tensor for name, tensor in timm_weights(**SHAPE).items() if "head" not in name}
    path = saved(tmp_path, weights)
    with pytest.raises(CheckpointError, match="give the number of classes of a new one"):
        load_pretrained(path)
    assert load_pretrained(path, classes=5).has_new_head


@pytest.mark.parametrize("name", ["pre_logits.fc", "heads.pre_logits"])
def test_a_classifier_behind_a_hidden_layer_is_not_kept_silently(tmp_path, name):
    weights = timm_weights(**SHAPE)
    weights = weights if name.startswith("pre") else torchvision_weights(weights)
    weights |= {f"{name}.weight": torch.randn(192, 192), f"{name}.bias": torch.zeros(192)}
    path = saved(tmp_path, weights)
    with pytest.raises(CheckpointError, match="give the number of classes of a new one"):
        load_pretrained(path)
    assert load_pretrained(path, classes=5).has_new_head


def test_the_pooler_of_transformers_is_left_out(tmp_path):
    weights = transformers_weights(timm_weights(**SHAPE))
    plain = load_pretrained(saved(tmp_path, weights)).model
    weights |= {"vit.pooler.dense.weight": torch.randn(192, 192), "vit.pooler.dense.bias": torch.randn(192)}
    torch.testing.assert_close(load_pretrained(saved(tmp_path, weights)).model.state_dict(), plain.state_dict())


def test_a_layer_scale_of_another_size_is_refused(tmp_path):
    weights = timm_weights(**SHAPE) | {"blocks.1.ls2.gamma": torch.ones(5)}
    with pytest.raises(CheckpointError, match=r"LayerScale \(5,\) of blocks\.1\.fc2 does not fit"):
        load_pretrained(saved(tmp_path, weights))


def test_half_precision_becomes_float32(tmp_path):
    weights = {name: tensor.bfloat16() for name, tensor in timm_weights(**SHAPE).items()}
    model = load_pretrained(saved(tmp_path, weights)).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.head.weight, weights["head.weight"].float())
    position = weights["pos_embed"][0, 0]
    assert torch.equal(model.clean_token, weights["cls_token"].flatten().float() + position.float())


def test_another_image_size_resamples_positions_and_leaves_the_tokens(tmp_path):
    path = saved(tmp_path, timm_weights(**SHAPE))
    same, larger = load_pretrained(path, image_size=12).model, load_pretrained(path, image_size=24).model
    assert larger.pos_embed.shape == (1, 36, 192)
    assert torch.equal(larger.clean_token, same.clean_token)
    assert larger(torch.rand(2, 3, 24, 24), torch.tensor([0.0, 1.0])).shape == (2, 5)


def test_resampling_keeps_a_slope_and_which_way_it_runs():
    rows = torch.arange(8.0).repeat_interleave(8)
    columns = torch.arange(8.0).repeat(8)
    smaller = resample_positions(torch.stack([rows, columns, torch.ones(64)], dim=1)[None], 4).view(4, 4, 3)
    inner = torch.tensor([2.5, 4.5])  # the border is clamped, so only the middle of a slope is known
    torch.testing.assert_close(smaller[1:3, 1:3, 0], inner[:, None].expand(2, 2), rtol=0, atol=0.1)
    torch.testing.assert_close(smaller[1:3, 1:3, 1], inner[None, :].expand(2, 2), rtol=0, atol=0.1)
    torch.testing.assert_close(smaller[..., 2], torch.ones(4, 4))


def test_a_tureen_checkpoint_passes_through_and_takes_other_sizes_too(tmp_path):
    config = ViTConfig(image_size=8, patch_size=4, width=16, depth=1, heads=2, classes=3, adapter="both")
    model = DualTokenViT(config)
    save_checkpoint(
        tmp_path,
        Checkpoint(
            model=model,
            test=Images(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int64)),
            recipe=DIGITS.model_copy(update={"model": config}),
            labels=["a", "b", "c"],
            preprocess=PreprocessSpec(image_size=8),
            accuracy=[],
            provenance={},
        ),
    )
    pretrained = load_pretrained(tmp_path)
    assert (pretrained.library, pretrained.has_new_head, pretrained.model.config) == ("tureen", False, config)
    torch.testing.assert_close(pretrained.model.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in pretrained.model.parameters())
    other = load_pretrained(tmp_path, image_size=16, classes=7)
    assert other.has_new_head
    assert (other.model.config.image_size, other.model.config.classes) == (16, 7)


@pytest.mark.parametrize(
    "name",
    [
        "dist_token",
        "head_dist.weight",
        "blocks.0.attn.norm.weight",
        "blocks.1.attn.relative_position_bias_table",
        "blocks.0.attn.qkv.weight_scale",
        "patch_embed.backbone.stem.conv.weight",
        "blocks.2.attn.proj.weight",
        "cls_token.weight",
    ],
)
def test_a_tensor_that_has_no_place_is_named_and_never_dropped(tmp_path, name):
    weights = timm_weights(**SHAPE) | {name: torch.ones(192)}
    with pytest.raises(CheckpointError, match=name):
        load_pretrained(saved(tmp_path, weights))


@pytest.mark.parametrize("name", sorted(timm_weights(**SHAPE).keys() - {"head.weight"}))
def test_an_incomplete_checkpoint_is_refused_unless_its_attention_has_no_bias(tmp_path, name):
    weights = timm_weights(**SHAPE)
    del weights[name]
    path = saved(tmp_path, weights)
    if name.endswith("attn.qkv.bias"):
        assert not load_pretrained(path).model.blocks[int(name.split(".")[1])].qkv.bias.any()
    else:
        with pytest.raises(CheckpointError, match="incomplete, or "):
            load_pretrained(path)


def test_a_fresh_head_drops_nothing_but_the_head(tmp_path):
    weights = timm_weights(**SHAPE) | {"head.weight_g": torch.ones(5)}
    with pytest.raises(CheckpointError, match=r"head\.weight_g"):
        load_pretrained(saved(tmp_path, weights), classes=10)


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_a_missing_third_of_the_attention_is_refused(tmp_path, part):
    weights = transformers_5_weights(timm_weights(**SHAPE))
    del weights[f"vit.layers.1.attention.{part}_proj.weight"]
    with pytest.raises(CheckpointError, match="incomplete"):
        load_pretrained(saved(tmp_path, weights))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("patch_embed.proj.weight", (192, 1, 4, 4)),  # greyscale
        ("patch_embed.proj.weight", (192, 3, 4, 2)),
        ("patch_embed.proj.weight", (192, 48)),
        ("pos_embed", (1, 8, 192)),
        ("pos_embed", (1, 10, 191)),
        ("cls_token", (1, 2, 192)),
        ("blocks.1.mlp.fc2.weight", (192, 115)),  # a gated hidden layer
        ("blocks.0.attn.qkv.weight", (192, 192)),
        ("head.bias", (6,)),
    ],
)
def test_a_tensor_of_another_shape_is_refused(tmp_path, name, shape):
    weights = timm_weights(**SHAPE) | {name: torch.ones(shape)}
    with pytest.raises(CheckpointError, match=r"not a plain pre-norm ViT|square of patches") as caught:
        load_pretrained(saved(tmp_path, weights))
    assert str(shape) in str(caught.value) or name == "patch_embed.proj.weight"


@pytest.mark.parametrize(
    ("layout", "config", "named"),
    [
        (transformers_weights, {"hidden_act": "gelu_new"}, "gelu_new"),
        (transformers_weights, {"model_type": "vit_mae"}, "vit_mae"),
        (timm_weights, {"global_pool": "max"}, "max"),
        (timm_weights, {"model_args": {"global_pool": "avgmax"}}, "avgmax"),
        (timm_weights, {"model_args": {"act_layer": "relu"}}, "relu"),
        (timm_weights, {"model_args": {"norm_layer": "rmsnorm"}}, "rmsnorm"),
        (timm_weights, {"model_args": {"block_fn": "ResPostBlock"}}, "ResPostBlock"),
        (timm_weights, {"model_args": {"pool_include_prefix": True}}, "pool_include_prefix"),
        (timm_weights, {"num_attention_heads": 7}, "heads 7"),
        (timm_weights, {"mean": "grey", "std": "grey"}, "mean"),
        (timm_weights, {"mean": MEAN}, "std"),
        (timm_weights, {"model_args": [1]}, "config.json"),
        (timm_weights, ["a list"], "config.json"),
    ],
)
def test_a_setting_that_makes_another_model_of_the_same_tensors_is_refused(tmp_path, layout, config, named):
    weights = timm_weights(**SHAPE)
    path = saved(tmp_path, weights if layout is timm_weights else layout(weights), config=config)
    with pytest.raises(CheckpointError, match=named):
        load_pretrained(path)


@pytest.mark.parametrize("image_size", [0, -4, 13])
def test_an_image_size_that_no_patch_divides_is_refused(tmp_path, image_size):
    with pytest.raises(CheckpointError, match="image_size"):
        load_pretrained(saved(tmp_path, timm_weights(**SHAPE)), image_size=image_size)


def test_other_models_and_empty_directories_are_refused(tmp_path):
    path = saved(tmp_path, {"conv1.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="no Vision Transformer of timm"):
        load_pretrained(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has none of the files model\.safetensors, pytorch_model\.bin"):
        load_pretrained(tmp_path / "empty")
