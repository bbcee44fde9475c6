"""The gallery of a small model that was trained on drawn signs."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from training.checkpoint import load_checkpoint
from training.errors import DataError
from training.evaluation import sign_gallery
from training.evaluation.accuracy import make_predictor
from training.evaluation.picture_attack import PictureAttack
from training.evaluation.sign_gallery import GALLERY, Gallery, make_gallery
from tureen.cli import main
from tureen.pictures.signs import SIGNS, drawn_picture
from tureen.preprocess import pixels_from_bytes, pixels_from_image


@pytest.fixture(scope="module")
def gallery(signs_run, tmp_path_factory):
    """The directory of a gallery, and its record."""
    out = tmp_path_factory.mktemp("gallery") / "new"
    return out, make_gallery(load_checkpoint(signs_run), signs_run, out, epsilon_255=4, steps=6, drawings=2)


def test_the_record_is_written_as_returned(gallery):
    out, record = gallery
    assert Gallery.model_validate_json((out / GALLERY).read_text()) == record
    assert (record.epsilon_255, record.image_size, record.difference_factor) == (4, 32, 31)
    assert [pair.sign for pair in record.pairs] + [one.sign for one in record.unread] != []
    assert {pair.sign for pair in record.pairs} | {one.sign for one in record.unread} == set(SIGNS)


def test_the_counts_follow_from_the_signs(gallery):
    _, record = gallery
    counts, pairs = record.counts, record.pairs
    assert counts.signs == 10
    assert counts.signs_without_picture == len(record.unread) == 10 - len(pairs)
    tried = sum(one.drawings_tried for one in [*pairs, *record.unread])
    attacks = sum(pair.clean_attacks for pair in pairs)
    assert (counts.drawings_tried, counts.drawings_read_wrongly) == (tried, tried - attacks)
    assert (counts.clean_attacks, counts.both_attacks) == (attacks, len(pairs))
    assert counts.clean_attacks_failed == attacks - sum(pair.clean.clean_is_wrong for pair in pairs)
    assert counts.both_attacks_failed == sum(
        not (pair.both.clean_is_wrong and pair.both.robust_is_wrong) for pair in pairs
    )
    assert counts.clean_wrong_robust_right == sum(
        pair.clean.clean_is_wrong and not pair.clean.robust_is_wrong for pair in pairs
    )


def test_the_files_are_the_pixels_that_were_read(gallery, signs_run):
    out, record = gallery
    checkpoint = load_checkpoint(signs_run)
    predict = make_predictor(checkpoint.model)
    assert record.pairs
    for pair in record.pairs:
        drawing = drawn_picture(pair.sign, pair.seed)
        assert np.array_equal(np.asarray(Image.open(out / pair.drawing)), np.asarray(drawing))
        view = pixels_from_bytes((out / pair.view).read_bytes(), checkpoint.preprocess)
        assert np.array_equal(view, pixels_from_image(drawing, checkpoint.preprocess))
        assert pair.readings[0].label == pair.readings[-1].label == pair.label
        for attacked in (pair.clean, pair.both):
            pixels = pixels_from_bytes((out / attacked.picture).read_bytes(), checkpoint.preprocess)
            assert np.abs(pixels.astype(int) - view).max() == attacked.largest_change <= 4
            read = [checkpoint.labels[row.argmax()] for row in predict(np.stack([pixels] * 2), [0.0, 1.0])]
            assert read == [attacked.readings[0].label, attacked.readings[-1].label]
            assert [label != pair.label for label in read] == [attacked.clean_is_wrong, attacked.robust_is_wrong]
            difference = np.asarray(Image.open(out / attacked.difference), dtype=int)
            assert np.array_equal(difference, np.clip(128 + 31 * (pixels.astype(int) - view), 0, 255))


def test_the_picture_is_that_of_the_smallest_radius_that_misleads(signs_run, tmp_path, monkeypatch):
    monkeypatch.setattr(sign_gallery, "SIGNS", ["stop", "yield"])
    checkpoint = load_checkpoint(signs_run)
    record = make_gallery(checkpoint, signs_run, tmp_path, epsilon_255=40, steps=3, drawings=1)
    misled = [pair for pair in record.pairs if pair.clean.succeeded]
    assert misled
    for pair in misled:
        assert 1 < pair.clean.largest_change < 40
        view = pixels_from_bytes((tmp_path / pair.view).read_bytes(), checkpoint.preprocess)
        weaker = PictureAttack(checkpoint.model, [0.0], pair.clean.largest_change - 1, steps=3).run(
            view, label := checkpoint.labels.index(pair.label)
        )
        assert make_predictor(checkpoint.model)(weaker[None], [0.0]).argmax() == label


def test_a_failed_attack_stays_in_the_gallery(signs_run, tmp_path):
    """One step of 1/255 fools hardly a sign: the first drawing of each stays, and all failures are counted."""
    record = make_gallery(load_checkpoint(signs_run), signs_run, tmp_path, epsilon_255=1, steps=1, drawings=2)
    assert len(record.pairs) + len(record.unread) == 10
    assert record.counts.both_attacks_failed > 0
    tried = [pair for pair in record.pairs if not pair.clean.succeeded]
    assert all(pair.drawings_tried == 2 for pair in tried)
    assert any(pair.clean_attacks == 2 and pair.seed == 0 for pair in tried)
    failed = [pair for pair in record.pairs if not pair.both.succeeded]
    assert all(pair.label in {pair.both.readings[0].label, pair.both.readings[-1].label} for pair in failed)


def test_a_sign_that_is_never_read_rightly_is_counted(signs_run, tmp_path):
    checkpoint = load_checkpoint(signs_run)
    labels = checkpoint.labels
    stop, other = labels.index("14-stop"), labels.index("13-yield")
    swapped = [*labels]
    swapped[stop], swapped[other] = swapped[other], swapped[stop]
    record = make_gallery(replace(checkpoint, labels=swapped), signs_run, tmp_path, epsilon_255=1, steps=1, drawings=1)
    assert {"stop", "yield"} <= {one.sign for one in record.unread}
    assert record.counts.drawings_read_wrongly >= 2


def test_a_model_of_other_classes_is_refused(checkpoint, digits_run, tmp_path):
    with pytest.raises(DataError, match=r"the model has no label for stop, yield, .*: the gallery needs a model of"):
        make_gallery(checkpoint, digits_run, tmp_path / "new", epsilon_255=4, steps=1)
    assert not (tmp_path / "new").exists()


def test_the_command_prints_a_table_or_the_record(signs_run, tmp_path, capsys):
    arguments = ["gallery", str(signs_run), "--out", str(tmp_path), "--steps", "1", "--drawings", "1"]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "clean mode wrong, robust mode right: " in table
    assert [line.split()[0] for line in table.splitlines() if line.split()[:1] and line.split()[0] in SIGNS]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["signs"] == 10
