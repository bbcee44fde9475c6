"""Third-party models from file to served bundle, compared with the logits of their library."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from starlette.testclient import TestClient

import tureen
from export.source_config import labels_from_config
from export.third_party import ThirdPartyOptions, load_third_party
from serve.api.app import create_app
from serve.inference.service import Service
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tests.randomised import randomised
from training.weights.library_settings import HALF, IMAGENET_MEAN, IMAGENET_STD
from training.weights.pretrained import load_pretrained
from tureen.bundle.bundle import load_bundle
from tureen.cli import main
from tureen.preprocess import pixels_from_bytes

ROUNDING = 1e-4  # what export itself allows in fp32
ANIMALS = ["cat", "cow", "dog", "hen", "owl"]
SIZES = {"img_size": 32, "patch_size": 8, "depth": 1, "num_classes": 5}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def exported(path, out, *arguments):
    """Export the path by the command; returns the manifest of the bundle."""
    command = ["export", str(path), "--out", str(out), "--engine", "onnxruntime", *map(str, arguments)]
    assert main(command) == 0
    return load_bundle(out).manifest


def assert_same_logits(bundle, photos, original, *, mean, std):
    """Compare the bundle, loaded and over HTTP, with the logits of the original for the same images."""
    images = [(photos / name / "003.jpg").read_bytes() for name in ANIMALS]
    with tureen.load(bundle, engine="onnxruntime") as soup:
        spec = soup.bundle.manifest.preprocess
        pixels = np.stack([pixels_from_bytes(image, spec) for image in images])
        normalised = (pixels.transpose(0, 3, 1, 2) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
        with torch.no_grad():
            expected = original(torch.from_numpy(normalised.astype(np.float32))).numpy()
        assert expected.std() > 0.1
        np.testing.assert_allclose(soup.logits(pixels, [0.0, 0.2, 0.5, 0.7, 1.0]), expected, atol=ROUNDING, rtol=0)
        answers = soup.classify(images, top_k=1)
    assert [answer.beta for answer in answers] == [None] * 5
    assert [answer.predictions[0].index for answer in answers] == expected.argmax(1).tolist()
    service = Service(Settings(bundle=bundle, engine="onnxruntime", max_batch=2), load_bundle(bundle), Metrics())
    with TestClient(create_app(service)) as client:
        for image, logits in zip(images, expected, strict=True):
            answer = client.post("/classify?top_k=5", content=image).json()
            found = {prediction["index"]: prediction["probability"] for prediction in answer["predictions"]}
            wanted = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            assert [found[i] for i in range(5)] == pytest.approx(wanted.tolist(), abs=ROUNDING)
            assert answer["beta"] is None
        assert client.post("/classify?beta=0", content=images[0]).json()["code"] == "single_token"


def test_a_model_of_timm_is_served_with_its_logits(timm, photos, tmp_path):
    original = randomised(timm.create_model("vit_tiny_patch16_224", **SIZES))
    original.pretrained_cfg |= {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "crop_pct": 0.8}
    timm.models.save_for_hf(original, tmp_path / "tiny", safe_serialization=True)
    manifest = exported(tmp_path / "tiny", tmp_path / "bundle")
    assert (manifest.name, manifest.preprocess.crop_fraction) == ("tiny", 0.8)
    assert manifest.provenance["library"] == "timm"
    assert_same_logits(tmp_path / "bundle", photos, original, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def test_weights_on_the_hub_are_exported_like_their_files_and_the_card_has_their_commit(
    timm, hub, tmp_path, monkeypatch, photos
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    original = randomised(timm.create_model("deit3_small_patch16_224", **SIZES))
    original.pretrained_cfg |= {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    timm.models.save_for_hf(original, tmp_path / "files", model_config={"label_names": ANIMALS})
    files = {file.name: file.read_bytes() for file in (tmp_path / "files").iterdir()}
    digest = hashlib.sha256(files["pytorch_model.bin"]).hexdigest()
    repository = "timm/deit3_small_patch16_224.fb_in1k"
    commit = hub.commit(repository, files)
    for location, name in (
        ("timm:deit3_small_patch16_224", "deit3_small_patch16_224"),
        (f"hf-hub:{repository}@main", "deit3_small_patch16_224.fb_in1k"),
    ):
        out = tmp_path / name
        manifest = exported(location, out)
        assert (manifest.name, manifest.labels) == (name, ANIMALS)
        card = (out / "README.md").read_text()
        for line in (
            f"- weights: {location}",
            f"- weights_address: hf-hub:{repository}@{commit}",
            f"- weights_sha256: {digest}",
        ):
            assert f"\n{line}\n" in card
        assert str(tmp_path) not in card + manifest.model_dump_json()
    assert_same_logits(out, photos, original, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def test_a_hub_that_lacks_the_weights_is_an_error_that_says_so(hub, tmp_path, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    said = refused(capsys, "hf-hub:ada/nothing", "--out", tmp_path / "bundle")
    assert "hf-hub:ada/nothing does not exist, or needs credentials" in said


def test_a_model_that_timm_saves_by_default_is_exported_from_its_directory(timm, tmp_path):
    original = randomised(timm.create_model("deit3_small_patch16_224", **SIZES))
    timm.models.save_for_hf(original, tmp_path / "tiny")
    manifest = exported(tmp_path / "tiny", tmp_path / "bundle")
    assert (manifest.name, manifest.provenance["weights"]) == ("tiny", "pytorch_model.bin")


def test_a_state_dict_of_timm_is_served_with_usual_values_that_the_card_names(timm, photos, tmp_path):
    original = randomised(timm.create_model("vit_tiny_patch16_224", **SIZES))
    torch.save(original.state_dict(), tmp_path / "vit tiny (1).pth")
    manifest = exported(tmp_path / "vit tiny (1).pth", tmp_path / "bundle")
    assert (manifest.name, manifest.preprocess.crop_fraction) == ("vit-tiny-1", 0.9)
    card = (tmp_path / "bundle" / "README.md").read_text()
    for fact in ("3 attention heads", "mean and standard deviation 0.5", "the middle 90 % of an image"):
        assert fact in card
    assert_same_logits(tmp_path / "bundle", photos, original, mean=HALF, std=HALF)


def test_a_model_of_transformers_is_served_with_its_logits_and_its_labels(transformers, photos, tmp_path):
    config = transformers.ViTConfig(
        image_size=32,
        patch_size=8,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=100,
        id2label=dict(enumerate(reversed(ANIMALS))),
    )
    original = randomised(transformers.ViTForImageClassification(config))
    original.save_pretrained(tmp_path / "animals")
    transformers.ViTImageProcessor(
        image_mean=IMAGENET_MEAN, do_center_crop=True, size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(tmp_path / "animals")
    manifest = exported(tmp_path / "animals", tmp_path / "bundle")
    assert manifest.labels == list(reversed(ANIMALS))
    assert manifest.preprocess.crop_fraction == 0.8
    assert "another filter than bicubic" in manifest.provenance["assumed"]
    assert_same_logits(
        tmp_path / "bundle", photos, lambda images: original(images).logits, mean=IMAGENET_MEAN, std=HALF
    )


def test_a_model_of_torchvision_is_served_with_its_logits(torchvision, photos, tmp_path):
    original = randomised(torchvision.models.VisionTransformer(32, 8, 1, 3, 192, 100, num_classes=5))
    torch.save(original.state_dict(), tmp_path / "vit.pth")
    manifest = exported(tmp_path / "vit.pth", tmp_path / "bundle")
    assert (manifest.labels, manifest.preprocess.crop_fraction) == (list("01234"), 0.875)
    assert_same_logits(tmp_path / "bundle", photos, original, mean=IMAGENET_MEAN, std=IMAGENET_STD)


# By hand, so that these run where no library is installed


def test_without_images_nothing_is_measured_and_only_fp32_is_proven(single_token_bundle):
    manifest = load_bundle(single_token_bundle).manifest
    assert (manifest.has_two_tokens, manifest.is_cotrained, manifest.accuracy) == (False, False, [])
    assert [(row.precision, row.n) for row in manifest.parity] == [("fp32", 64)]
    assert manifest.provenance["measured_on"] == "64 synthetic pictures"
    assert not {"recipe", "seed"} & set(manifest.provenance)  # by which nothing was trained


def test_images_give_labels_and_an_accuracy(single_token_file, photos, tmp_path, capsys):
    manifest = exported(single_token_file, tmp_path / "bundle", "--data", photos, "--images", 20)
    shown = capsys.readouterr()
    assert manifest.labels == ANIMALS
    assert "in alphabetical order" in shown.err
    assert shown.out.rstrip().endswith(f"next, for a robust mode: tureen train finetune --init {single_token_file} "
                                       f"--data {photos}")  # fmt: skip
    first, second = manifest.accuracy
    assert (first.beta, second.beta, first.n, first.attack, first.epsilon_255) == (
        0,
        1,
        20,
        "APGD-40 (CE, targeted DLR)",
        4,
    )
    assert (first.clean, first.robust) == (second.clean, second.robust)
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert f"{100 * first.clean.value:.1f} (" in card
    assert "under APGD-40 (CE, targeted DLR), white-box, l∞ ε = 4/255" in card
    assert "no robust mode" in card


def test_how_much_is_measured_and_how_hard_is_ones_choice(single_token_file, photos, tmp_path):
    arguments = ["--data", photos, "--images", 10, "--epsilon-255", 0, "--crop-fraction", 0.5, "--tokens", "equal"]
    manifest = exported(single_token_file, tmp_path / "bundle", *arguments, "--default-beta", 0.3)
    assert (manifest.accuracy[0].n, manifest.preprocess.crop_fraction, manifest.default_beta) == (10, 0.5, 0.3)
    assert (manifest.has_two_tokens, manifest.is_cotrained) == (True, False)
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "PGD" not in card
    assert "which has no effect" in card


def test_a_file_of_labels_has_priority(single_token_file, photos, tmp_path):
    names = tmp_path / "labels.txt"
    names.write_text("\n".join(reversed(ANIMALS)) + "\n\n")
    manifest = exported(single_token_file, tmp_path / "bundle", "--labels", names, "--data", photos, "--epsilon-255", 0)
    assert manifest.labels == list(reversed(ANIMALS))


def test_a_byte_order_mark_in_a_configuration_is_left_out(single_token_weights, tmp_path):
    path = saved(tmp_path / "marked", single_token_weights, config={"label_names": ANIMALS})
    (path / "config.json").write_bytes(b"\xef\xbb\xbf" + (path / "config.json").read_bytes())
    assert labels_from_config(path) == ANIMALS
    assert load_pretrained(path).model.config.classes == 5


def test_duplicate_labels_of_a_configuration_are_made_distinct(single_token_weights, tmp_path):
    """As google/vit-base-patch16-224 has "crane", a bird and a machine."""
    config = {"id2label": dict(enumerate(["crane", "cow", "dog", "crane", "owl"]))}
    checkpoint = load_third_party(saved(tmp_path / "twice", single_token_weights, config=config), ThirdPartyOptions())
    assert checkpoint.labels == ["crane (0)", "cow", "dog", "crane (3)", "owl"]
    assert "have their number added: crane" in checkpoint.provenance["assumed"]


def saved(folder, weights, **files):
    folder.mkdir()
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def refused(capsys, *arguments, status=1):
    """Run the command, which must fail; returns the last line of its error output."""
    capsys.readouterr()
    assert main(["export", *map(str, arguments)]) == status
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


def test_a_file_without_a_model_is_refused(tmp_path, capsys):
    for name, content in {"a.safetensors": b"no", "b.pth": b"no", "c.txt": b"no"}.items():
        (tmp_path / name).write_bytes(content)
        assert name in refused(capsys, tmp_path / name, "--out", tmp_path / "bundle")
    assert "not a finished checkpoint" in refused(capsys, tmp_path, "--out", tmp_path / "bundle")
    absent = tmp_path / "nofile.safetensors"
    assert f"{absent} does not exist" in refused(capsys, absent, "--out", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_model_without_a_classifier_is_sent_to_co_training(single_token_weights, tmp_path, capsys):
    headless = {name: tensor for name, tensor in single_token_weights.items() if not name.startswith("head.")}
    path = saved(tmp_path / "headless", headless)
    said = refused(capsys, path, "--out", tmp_path / "bundle")
    assert "no linear classifier, so it cannot be served: add one and co-train the model with `tureen train " in said


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (ANIMALS[:4], "has 4 labels, the classifier of"),
        ([*ANIMALS, "emu"], "has 6 labels, the classifier of"),
        (["cat", "", "dog", "hen", "owl"], "has an empty line, number 2"),
        (["cat", "cow", "dog", "hen", "emu"], "has images of 'owl', but none of the outputs in "),
        (["cat", "dog", "hen", "cat", "owl"], "has the label 'cat' in lines 1 and 4"),
    ],
    ids=["too few", "too many", "empty line", "another", "twice"],
)
def test_labels_that_do_not_fit_are_refused(single_token_file, photos, tmp_path, capsys, lines, said):
    (tmp_path / "labels.txt").write_text("\n".join(lines))
    arguments = ("--data", photos, "--labels", tmp_path / "labels.txt")
    assert said in refused(capsys, single_token_file, "--out", tmp_path / "bundle", *arguments)


def test_a_classifier_that_does_not_fit_the_images_is_refused(single_token_file, photos, tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / "two" / name).mkdir(parents=True)
        (tmp_path / "two" / name / "1.jpg").write_bytes((photos / name / "001.jpg").read_bytes())
    said = refused(capsys, single_token_file, "--out", tmp_path / "bundle", "--data", tmp_path / "two")
    assert "has 2 labels, the classifier of" in said
    assert "5 outputs: name each output with --labels FILE" in said
    assert f"tureen train finetune --init {single_token_file} --data {tmp_path / 'two'}" in said


@pytest.mark.parametrize(
    "config",
    [{"pretrained_cfg": {"crop_pct": 7}}, {"pretrained_cfg": {"crop_pct": "most"}}, {"id2label": {"1": "cat"}}],
    ids=str,
)
def test_a_configuration_that_makes_no_sense_is_refused(single_token_weights, tmp_path, capsys, config):
    path = saved(tmp_path / "odd", single_token_weights, config=config)
    assert str(path) in refused(capsys, path, "--out", tmp_path / "bundle")


def test_a_default_beta_needs_two_tokens(single_token_file, tmp_path, capsys):
    said = refused(capsys, single_token_file, "--out", tmp_path / "bundle", "--default-beta", 0, status=2)
    assert "one token, so there is no β to choose: leave --default-beta out" in said


def test_an_existing_bundle_is_not_overwritten_without_the_flag(single_token_file, single_token_bundle, capsys):
    assert "exists already" in refused(capsys, single_token_file, "--out", single_token_bundle)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--images", "0", "--data", "photos"],
        ["--epsilon-255", "-1"],
        ["--crop-fraction", "0"],
        ["--precision", "bf16"],
        ["--tokens", "two"],
        ["--gallery", "gallery"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_wrong_options_exit_with_2(single_token_file, tmp_path, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["export", str(single_token_file), "--out", str(tmp_path / "bundle"), *arguments])
    assert exit_.value.code == 2


def test_a_tureen_checkpoint_takes_none_of_these_options(digits_run, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(
            ["export", str(digits_run), "--out", str(tmp_path / "bundle"), "--tokens", "equal", "--labels", "names.txt"]
        )
    assert exit_.value.code == 2
    assert "--tokens, --labels: only for third-party models" in capsys.readouterr().err
