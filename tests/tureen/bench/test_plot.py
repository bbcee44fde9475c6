from PIL import Image


def test_the_picture_is_a_png(measured):
    _, out = measured
    with Image.open(out / "bench.png") as image:
        assert image.format == "PNG"
        assert image.width > 800
        assert image.height > 500
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours  # a line for each engine
