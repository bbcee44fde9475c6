import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.offline_wandb import read_offline_runs
from tests.patience import DEADLINE_S
from tests.ports import free_port
from training.checkpoint import load_checkpoint, weights_sha256
from training.cotrain import Cotraining
from training.errors import CheckpointError
from training.models.resnet import DualResNet
from training.models.shapes import ResNetConfig
from training.preparation import RunOptions, class_counts, fitted_to_images, load_training_data, with_defaults
from training.recipes import load_recipe
from training.resume import read_saved_run
from training.run import exclusive_writer, resumed_options, run
from tureen.cli import main

# With this radius the attack leaves no image for the stronger attacks that check it.
EVERY_IMAGE_FALLS = ["epsilon_255=128", "evaluation_steps=5", "evaluation_betas=0,1"]
QUICK = [
    "epochs=6", "batch_size=202", "attack_steps=1", "learning_rate=0.0001", "model.depth=1", "model.width=16",
    *EVERY_IMAGE_FALLS,
]  # fmt: skip


def command(out, *extra):
    settings = [word for setting in QUICK for word in ("--set", setting)]
    return ["train", "digits", "--out", str(out), *settings, *extra]


def test_a_run_leaves_a_checkpoint_a_log_and_nothing_else(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(command(out, "--json")) == 0
    assert [row["beta"] for row in json.loads(capsys.readouterr().out)] == [0, 1]
    assert sorted(file.name for file in out.iterdir()) == [
        "checkpoint.json",
        "log.jsonl",
        "model.safetensors",
        "test.npz",
        "validation.npz",
    ]
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    progress = [entry for entry in entries if "clean_loss" in entry]
    assert [entry["epoch"] for entry in progress] == [1, 2, 3, 4, 5, 6]
    assert progress[-1]["epsilon_255"] == 128
    assert len([entry for entry in entries if "ten_steps" in entry]) == 6
    assert main(command(out)) == 1
    assert "holds a finished run" in capsys.readouterr().err


def test_a_killed_run_resumes_to_the_same_weights(tmp_path, start_training):
    """SIGKILL at a random moment after the first save; in fp32 on a CPU all bits of the weights are equal."""
    long = ["--set", "epochs=15", "--save-interval-s", "0"]  # so that there is soon something to resume

    killed = start_training(command(tmp_path / "killed", *long))
    wait_for(tmp_path / "killed" / "resume.safetensors", killed)
    time.sleep(random.random() / 2)
    assert killed.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert not (tmp_path / "killed" / "checkpoint.json").exists()
    assert trained(command(tmp_path / "killed", *long)) == 1  # without --resume it is left alone
    assert trained(command(tmp_path / "killed", *long, "--resume")) == 0
    assert trained(command(tmp_path / "whole", *long)) == 0
    killed_weights, whole_weights = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(killed_weights[name], whole_weights[name]) for name in whole_weights)


class Started:
    """A running command, with its standard error in a file."""

    def __init__(self, process, stderr):
        self.process, self.stderr = process, stderr

    def end(self, signal_number):
        """Send the signal; return the exit status and the standard error."""
        self.process.send_signal(signal_number)
        return self.process.wait(DEADLINE_S), self.stderr.read_text()


@pytest.fixture
def start_training(forked_training, tmp_path):
    """A function that starts a command in a fork with one thread, or below a launcher in an interpreter."""
    log = tmp_path / "stderr"
    running = []

    def start(arguments, *launcher):
        with log.open("w") as stderr, open(os.devnull, "w") as nothing:
            if launcher:
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                program = [sys.executable, *launcher, *arguments]
                process = subprocess.Popen(program, env=environment, stderr=stderr, stdout=nothing)
            else:
                process = forked_training.start(arguments, stderr=stderr, stdout=nothing)
        running.append(process)
        return Started(process, log)

    yield start
    for process in running:
        process.kill()
        process.wait()


def trained(arguments):
    """Run the command in this process, on one thread as in `start_training`, so that sums have the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return main(arguments)
    finally:
        torch.set_num_threads(threads)


def wait_for(file, started):
    """Wait until the command has written into the file."""
    while not (file.exists() and file.stat().st_size):
        assert started.process.poll() is None, started.stderr.read_text()
        time.sleep(0.01)


TWO_PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tureen.cli"]
NO_CLOCK = ["--save-interval-s", "3600"]  # what is saved then, a signal saved


def test_a_signal_saves_the_run_which_resume_alone_continues_to_the_same_weights(tmp_path, start_training, capsys):
    out = tmp_path / "run"
    process = start_training(command(out, "--set", "epochs=12", *NO_CLOCK))
    wait_for(out / "log.jsonl", process)
    status, said = process.end(signal.SIGINT)
    assert status == 130
    saved = read_saved_run(out / "resume.safetensors")
    assert 0 < saved.step <= saved.steps == 12 * 6
    assert f"interrupted; saved: {saved}" in said
    assert f"tureen train --resume --out {out}" in said
    assert trained(["train", "--resume", "--out", str(out)]) == 0
    assert f"continuing {saved}" in capsys.readouterr().err
    assert trained(command(tmp_path / "whole", "--set", "epochs=12")) == 0
    ours, others = (load_file(directory / "model.safetensors") for directory in (out, tmp_path / "whole"))
    assert all(torch.equal(ours[name], others[name]) for name in others)


def test_a_signal_while_the_trained_model_is_measured_loses_no_step(tmp_path, start_training):
    out = tmp_path / "run"
    endless = ["--set", "evaluation_steps=100000", "--set", "epsilon_255=1"]  # images are left until the last step
    process = start_training(command(out, *endless, *NO_CLOCK))
    wait_for(out / "resume.safetensors", process)
    status, said = process.end(signal.SIGTERM)
    assert status == 143
    assert "step 36 of 36 (100 %)" in said
    assert main(["train", "--resume", "--out", str(out), "--set", "evaluation_steps=1"]) == 0
    assert load_checkpoint(out).recipe.evaluation_steps == 1


def test_a_signal_during_the_last_save_is_not_lost(tmp_path, monkeypatch):
    save = Cotraining.save

    def interrupted(training, *arguments):
        save(training, *arguments)
        if training.is_finished:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Cotraining, "save", interrupted)
    assert main(command(tmp_path / "run", *NO_CLOCK)) == 143
    assert not (tmp_path / "run" / "checkpoint.json").exists()


def test_a_signal_before_the_first_step_reports_that_nothing_is_saved(tmp_path, start_training):
    fifo = tmp_path / "photos" / "cat" / "0.png"
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(1, 9):
            Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    os.mkfifo(fifo)  # reading it waits for this test
    started = start_training(folder_command(tmp_path / "run", "--data", str(tmp_path / "photos")))
    with fifo.open("wb") as file:  # opens once the process reads it
        started.process.send_signal(signal.SIGINT)
        file.write(b"nothing")
    assert started.process.wait(DEADLINE_S) == 130
    said = started.stderr.read_text()
    assert "interrupted before the first step: there is no saved run to continue" in said


@pytest.mark.end_to_end
def test_torchruns_processes_stop_together_and_the_first_saves(tmp_path, start_training):
    out = tmp_path / "run"
    process = start_training(command(out, "--set", "epochs=2000", *NO_CLOCK), *TWO_PROCESSES)
    wait_for(out / "log.jsonl", process)
    status, said = process.end(signal.SIGTERM)
    assert status != 0
    saved = read_saved_run(out / "resume.safetensors")
    assert 0 < saved.step < saved.steps
    assert said.count("interrupted; saved") == 1


def saved_folder_run(photos, out):
    """Save an unfinished run on the photographs, before its first step."""
    recipe = load_recipe("cifar10-cpu", FOLDER)
    options = RunOptions(data=str(photos), is_resumed=True)
    data = load_training_data(recipe, options)
    out.mkdir()
    Cotraining(fitted_to_images(recipe, data), data, torch.device("cpu")).save(
        out / "resume.safetensors", options.as_saved()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "learning_rate=1"], "is of a run with learning_rate = 0.0015, not 1.0: omit that option"),
        (["--set", "model.depth=2"], "is of a run with model.depth = 1, not 2"),
        (["--set", "augmentation.flip=false"], "is of a run with augmentation.flip = True, not False"),
        (["digits"], "holds a run of the recipe cifar10-cpu, not digits"),
        (["--image-size", "8"], "is of a run with --image-size 16, not 8"),
        (["--group-by", "cat"], "is of a run with --group-by None, not cat"),
        (["--init", "vit.safetensors"], "is of a run with --init None, not "),
        (["--data", "others"], "other classes than those of --data"),
    ],
)
def test_a_setting_that_is_not_the_saved_runs_is_named_before_an_image_is_read(
    photos, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    for name in ("bright", "dark", "cat"):
        (tmp_path / "others" / name).mkdir(parents=True)
        (tmp_path / "others" / name / "0.png").write_bytes(b"")
    saved_folder_run(photos, tmp_path / "run")
    capsys.readouterr()
    assert main(["train", *arguments, "--resume", "--out", "run"]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "read images" not in said


def test_a_resumed_run_has_the_groups_of_its_start(photos, tmp_path):
    options = RunOptions(data=str(photos), group_by=r"/(\d+)")
    data = load_training_data(load_recipe("cifar10-cpu", FOLDER), options)
    assert data.groups == 20
    assert "20 groups of images, none of them in two parts" in class_counts(data)
    training = Cotraining(fitted_to_images(load_recipe("cifar10-cpu", FOLDER), data), data, torch.device("cpu"))
    training.save(tmp_path / "state", options.as_saved())
    saved = read_saved_run(tmp_path / "state")
    assert resumed_options(saved, RunOptions()).group_by == options.group_by
    with pytest.raises(CheckpointError, match=r"is of a run with --group-by /\(\\d\+\), not cat: omit that option"):
        resumed_options(saved, RunOptions(group_by="cat"))


def test_a_recipe_groups_its_images_unless_the_option_does(photos, tmp_path):
    recipe = load_recipe("signs", [*FOLDER, "model.patch_size=8", "evaluation_images=3"])
    for given, expected in ((None, recipe.group_by), (r"/(\d+)", r"/(\d+)")):
        checkpoint = run(recipe, tmp_path / str(len(expected)), RunOptions(data=str(photos), group_by=given))
        assert checkpoint.provenance["group_by"] == expected


def test_a_run_resumes_in_another_directory_and_with_its_images_elsewhere(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos.parent)
    saved_folder_run(photos.name, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    assert main(["train", "--resume", "--out", "run"]) == 0
    shutil.copytree(photos, tmp_path / "copy")
    assert main(["train", "cifar10-cpu", "--resume", "--out", "moved", "--data", "copy"]) == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--resume"], 2, "give a recipe, or the run to continue"),
        (["--out", "nothing"], 2, "give a recipe, or the run to continue"),
        (["--resume", "--out", "nothing"], 1, "nothing holds no interrupted run to continue"),
    ],
)
def test_without_a_recipe_a_run_to_continue_is_required(tmp_path, monkeypatch, capsys, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    try:
        assert main(["train", *arguments]) == status
    except SystemExit as error:
        assert error.code == status
    assert message in capsys.readouterr().err


def test_two_processes_train_like_one(tmp_path, forked_training):
    """Two processes with the variables of torchrun. ε = 0 and no shifts, because random numbers depend on the rank."""
    still = ["epsilon_255=0", "augmentation.shift_pixels=0", "epochs=3", "batch_size=64", "evaluation_steps=1"]
    settings = [word for setting in still for word in ("--set", setting)]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    group["OMP_NUM_THREADS"] = "1"
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    two = command(tmp_path / "two", *settings)
    processes = [forked_training.start(two, env={**os.environ, **group, **rank}) for rank in ranks]
    assert trained(command(tmp_path / "one", *settings)) == 0
    assert [process.wait(DEADLINE_S) for process in processes] == [0, 0]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)  # fp32 sums in another order, 57 steps
    assert json.loads((tmp_path / "two" / "checkpoint.json").read_text())["provenance"]["processes"] == 2


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes of bright, dark and striped images; one file is damaged."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("bright", "dark", "striped")):
        (root / name).mkdir()
        for i in range(20):
            picture = np.full((20, 24, 3), (220, 30, 120)[label]) + rng.integers(-30, 30, (20, 24, 3))
            if name == "striped":
                picture[:, ::4] = 250
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    (root / "dark" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    return root


FOLDER = ["epochs=2", "batch_size=8", "model.image_size=16", "model.depth=1", "model.width=16", *EVERY_IMAGE_FALLS]


def folder_command(out, *extra):
    settings = [word for setting in FOLDER for word in ("--set", setting)]
    return ["train", "cifar10-cpu", "--out", str(out), *settings, *extra]


@pytest.mark.parametrize("crop_scale", ["1", "0.5"])
def test_a_folder_of_images_becomes_a_checkpoint_with_its_labels(photos, tmp_path, capsys, crop_scale):
    out = tmp_path / "run"
    extra = ["--set", f"augmentation.crop_scale={crop_scale}", "--workers", "1"]
    assert main(folder_command(out, "--data", str(photos), *extra)) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"listing the images of {photos}\nreading 60 images\nread 6 of 60 images\n")
    assert "skipped 1 images that cannot be decoded" in said
    assert (
        "3 classes: 47 images to train on, 6 for validation, 6 to test on\n  bright       16       2       2\n" in said
    )
    assert re.search(r"near-duplicates of training images: \d of 6 test images \(0 equal\), \d of 6 validation", said)
    assert "dark/3.png" in said
    assert (out / "skipped.txt").read_text().startswith("dark/3.png: ")
    checkpoint = load_checkpoint(out)
    assert checkpoint.labels == ["bright", "dark", "striped"]
    assert checkpoint.recipe.model.classes == 3
    assert checkpoint.provenance["training_images"] == 47
    assert set(checkpoint.provenance["near_duplicates"]) == {"test", "test_exact", "validation", "validation_exact"}
    assert checkpoint.name == photos.name


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "needs --data"),
        (
            ["--group-by", "bright|dark|striped"],
            1,
            "too few groups of images of 'bright', 1: training, validation and test",
        ),
        (["--data", "nowhere"], 1, "nowhere is not a folder"),
        (["--strict"], 1, "1 images cannot be decoded, the first is dark/3.png"),
    ],
)
def test_images_that_cannot_be_trained_on_leave_no_directory(photos, tmp_path, capsys, arguments, status, message):
    if arguments and "--data" not in arguments:
        arguments = [*arguments, "--data", str(photos)]
    assert main(folder_command(tmp_path / "run", *arguments)) == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_finetuning_uses_the_given_shape_and_weights(photos, digits_like, tmp_path, capsys):
    out = tmp_path / "run"
    settings = ["epochs=1", "learning_rate=1e-9", "augmentation.crop_scale=1", *EVERY_IMAGE_FALLS]
    arguments = [word for setting in settings for word in ("--set", setting)]
    command_line = ["train", "finetune", "--data", str(photos), "--out", str(out), *arguments]
    assert main([*command_line, "--init", str(digits_like), "--image-size", "16"]) == 0
    assert "a checkpoint of tureen, with a new classifier" in capsys.readouterr().err
    start, tuned = load_checkpoint(digits_like), load_checkpoint(out)
    shape = start.recipe.model.model_copy(update={"image_size": 16, "classes": 3})
    assert tuned.recipe.model == shape
    torch.testing.assert_close(tuned.model.blocks[0].qkv.weight, start.model.blocks[0].qkv.weight)
    origin = {name: value for name, value in tuned.provenance.items() if name.startswith("init")}
    assert origin == {"init": "model.safetensors", "init_sha256": weights_sha256(digits_like)}


def test_a_resumed_run_keeps_the_origin_of_weights_whose_file_is_gone(photos, single_token_file, tmp_path):
    weights = shutil.copy(single_token_file, tmp_path / "vit.safetensors")
    settings = ["epochs=1", "batch_size=16", "augmentation.crop_scale=1", *EVERY_IMAGE_FALLS]
    recipe, options = with_defaults(
        load_recipe("finetune", settings), RunOptions(data=str(photos), init=str(weights), image_size=16)
    )
    data = load_training_data(recipe, options)
    out = tmp_path / "run"
    out.mkdir()
    training = Cotraining(fitted_to_images(recipe, data), data, torch.device("cpu"))
    training.save(out / "resume.safetensors", options.as_saved())
    weights.unlink()
    assert main(["train", "--resume", "--out", str(out)]) == 0
    provenance = load_checkpoint(out).provenance
    assert provenance["init"] == "vit.safetensors"
    assert provenance["init_sha256"] == hashlib.sha256(single_token_file.read_bytes()).hexdigest()
    assert str(tmp_path) not in (out / "checkpoint.json").read_text()


@pytest.fixture(scope="module")
def digits_like(tmp_path_factory):
    """The directory of a checkpoint of Tureen."""
    out = tmp_path_factory.mktemp("own") / "run"
    assert main(command(out, "--set", "epochs=1")) == 0
    return out


@pytest.mark.parametrize(
    ("recipe", "arguments", "status", "message"),
    [
        ("finetune", [], 2, "needs --init"),
        ("digits", ["--init", "weights"], 2, "--init is for the recipe finetune"),
        ("finetune", ["--init", "nowhere.safetensors"], 1, "nowhere.safetensors"),
        ("finetune", ["--init", "resnet.safetensors"], 1, "resnet.safetensors"),
    ],
)
def test_unusable_initial_weights_leave_no_directory(
    photos, tmp_path, monkeypatch, capsys, recipe, arguments, status, message
):
    monkeypatch.chdir(tmp_path)
    resnet = DualResNet(ResNetConfig(depth=18, image_size=8, classes=2, stem="small", width=8))
    save_file(resnet.state_dict(), "resnet.safetensors")
    data = [] if recipe == "digits" else ["--data", str(photos)]
    assert main(["train", recipe, "--out", "run", *data, *arguments]) == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "evaluation_attack=nothing"], "there is no attack 'nothing'"),
        (["--set", "evaluation_attack=autoattack"], "autoattack needs 4 classes, there are 3: attack with apgd"),
        (["--image-size", "16"], "--image-size is for the recipe finetune"),
        (["--set", "adam_betas=2,2"], "adam_betas"),
        (["--set", "augmentation.mixup=inf"], "mixup"),
        (["--set", "seed=4294967296"], "seed"),
    ],
)
def test_a_failure_after_training_is_found_before(photos, tmp_path, capsys, arguments, message):
    assert main(folder_command(tmp_path / "run", "--data", str(photos), *arguments)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_two_runs_do_not_write_into_one_directory(tmp_path):
    with (
        exclusive_writer(tmp_path),
        pytest.raises(CheckpointError, match="another run is writing"),
        exclusive_writer(tmp_path),
    ):
        pass
    with exclusive_writer(tmp_path):
        pass


def test_a_fresh_classifier_is_the_seeds(photos, digits_like, tmp_path):
    heads = []
    for name in ("one", "two"):
        command_line = ["train", "finetune", "--data", str(photos), "--init", str(digits_like)]
        settings = ["epochs=1", "batch_size=16", "augmentation.crop_scale=1", *EVERY_IMAGE_FALLS]
        arguments = [word for setting in settings for word in ("--set", setting)]
        assert main([*command_line, "--out", str(tmp_path / name), *arguments]) == 0
        heads.append(load_checkpoint(tmp_path / name).model.head.weight)
    assert torch.equal(*heads)


def test_the_shape_of_a_finetuned_model_is_not_set(photos, digits_like, tmp_path, capsys):
    command_line = ["train", "finetune", "--data", str(photos), "--init", str(digits_like)]
    assert main([*command_line, "--out", str(tmp_path / "run"), "--set", "model.depth=3"]) == 2
    assert "omit --set model" in capsys.readouterr().err


def test_a_run_takes_the_given_number_of_threads_and_shows_its_estimated_time_once(tmp_path, capsys):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert main(command(tmp_path / "run", "--threads", "1")) == 0
    finally:
        torch.set_num_threads(threads)
    assert load_checkpoint(tmp_path / "run").provenance["threads"] == 1
    printed = capsys.readouterr()
    assert len(re.findall(r"^train digits: about \d+ (?:s|min) for \d+ steps$", printed.err, re.MULTILINE)) == 1
    assert "clean and robust mode differ by less than 2 points on the test images" in printed.out


@pytest.mark.filterwarnings("ignore:.*noload.*:DeprecationWarning")  # MLflow's use of SQLAlchemy
def test_an_interrupted_run_continues_the_same_run_in_every_logger(tmp_path, monkeypatch, capsys):
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "night"
    run_epoch = Cotraining.run_epoch

    def interrupted(training, *arguments):
        progress = run_epoch(training, *arguments)
        if training.step == 12:
            os.kill(os.getpid(), signal.SIGINT)  # ends the run after the next step
        return progress

    loggers = ["--log", "mlflow", "--log", "wandb", "--tensorboard", "--log", "mlflow"]
    with monkeypatch.context() as patch:
        patch.setattr(Cotraining, "run_epoch", interrupted)
        assert main(command(out, *NO_CLOCK, *loggers)) == 130
    ids = read_saved_run(out / "resume.safetensors").logged_runs
    assert set(ids) == {"mlflow", "wandb", "tensorboard"}
    client = MlflowClient()
    assert client.get_run(ids["mlflow"]).info.status == "KILLED"
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(out), "--json"]) == 0
    accuracy = {row["beta"]: row for row in json.loads(capsys.readouterr().out)}

    before, after = [6, 12, 13], [18, 24, 30, 36]
    run = client.get_run(ids["mlflow"])
    assert (run.info.run_name, run.info.status, run.data.params["model.depth"]) == ("night", "FINISHED", "1")
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "robust_loss")] == before + after
    assert run.data.metrics["clean_accuracy_at_beta_0"] == accuracy[0]["clean"]["value"]
    assert run.data.tags["checkpoint"] == str(out)

    first, second = read_offline_runs(out)
    assert first.run_id == second.run_id == ids["wandb"]
    assert (first.exit_status, second.exit_status) == (130, 0)
    steps = [[one["_step"] for one in run.history if "robust_loss" in one] for run in (first, second)]
    assert steps == [before, after]
    assert first.config["model.depth"] == 1
    assert second.summary["clean_accuracy_at_beta_0"] == accuracy[0]["clean"]["value"]

    events = EventAccumulator(str(out)).Reload()
    assert [event.step for event in events.Scalars("robust_loss")] == before + after
    assert {"clean_loss", "learning_rate", "ten_steps"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("accuracy_at_100_beta/robust")] == [0, 100]


def test_a_logger_that_is_not_installed_is_named_before_an_image_is_read(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(folder_command(tmp_path / "run", "--data", str(photos), "--log", "wandb")) == 1
    assert capsys.readouterr().err == ("tureen train: --log wandb needs wandb: install Tureen with its extra [wandb]\n")
    assert not (tmp_path / "run").exists()
