"""The table of `tureen gallery`; tests/training/evaluation/test_sign_gallery.py runs the command."""

import pytest

from training.commands.gallery import gallery, gallery_table
from training.evaluation.picture_attack import Reading
from training.evaluation.sign_gallery import AttackedPicture, Gallery, GalleryCounts, SignPair, UnreadSign
from tureen.bundle.strength_curve import UNMEASURED_STRENGTH


def readings(clean, robust):
    return [
        Reading(strength=strength, beta=strength, label=label, probability=0.9, true_label_probability=0.1)
        for strength, label in ((0.0, clean), (1.0, robust))
    ]


def attacked(clean, robust):
    return AttackedPicture(
        picture="p.png",
        difference="d.png",
        largest_change=4,
        clean_is_wrong=clean != "14-stop",
        robust_is_wrong=robust != "14-stop",
        succeeded=clean != "14-stop",
        readings=readings(clean, robust),
    )


def test_the_table_has_a_row_for_each_sign_and_the_counts():
    pair = SignPair(
        sign="stop",
        label="14-stop",
        seed=3,
        drawings_tried=4,
        clean_attacks=3,
        drawing="stop.png",
        view="v.png",
        readings=readings("14-stop", "14-stop"),
        clean=attacked("13-yield", "14-stop"),
        both=attacked("13-yield", "15-no-vehicles"),
    )
    made = Gallery(
        model="signs",
        recipe="signs",
        model_sha256="",
        made_by="tureen",
        image_size=32,
        attack="APGD-100",
        epsilon_255=4,
        difference_factor=31,
        strength=UNMEASURED_STRENGTH,
        counts=GalleryCounts(
            signs=2,
            drawings_tried=24,
            drawings_read_wrongly=21,
            signs_without_picture=1,
            clean_attacks=3,
            clean_attacks_failed=2,
            both_attacks=1,
            both_attacks_failed=0,
            clean_wrong_robust_right=1,
        ),
        pairs=[pair],
        unread=[UnreadSign(sign="yield", label="13-yield", drawings_tried=20)],
    )
    lines = gallery_table(made).splitlines()
    assert lines[2].split() == [
        *("stop", "3", "13-yield", "90", "%", "*", "14-stop", "90", "%"),
        *("13-yield", "90", "%", "15-no-vehicles", "90", "%"),
    ]
    assert lines[3].split("  ")[0] == "yield"
    assert "drawings tried: 24, of which a mode read 21 wrongly" in lines
    assert "attacks for the clean token: 3, failed: 2" in lines
    assert lines[-1] == "clean mode wrong, robust mode right: 1 of 2"


def test_no_drawing_at_all_is_wrong_use():
    with pytest.raises(SystemExit) as ended:
        gallery(["run", "--out", "gallery", "--drawings", "0"])
    assert ended.value.code == 2
