"""What the numbers in a picture file mean: every depth comes out as bright as it is."""
import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import encoded, picture, png, tiff, write_lmdb
from PIL import Image

from pdae_lite import data
from pdae_lite.warning import PDAEWarning

GREY = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
WIDE = GREY.astype(np.uint16) * 257
FEW = settings(derandomize=True, deadline=None, max_examples=40)


def read(tmp_path, content, channels=1, name="a.tif", size=8, **options):
    """(image [channels, H, W] as read, the warnings)."""
    (tmp_path / name).write_bytes(content)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        image = data.read_image(tmp_path / name, channels, size, **options)
    assert all(w.category is PDAEWarning and "\n" not in str(w.message) for w in said)
    return image.numpy(), [str(w.message) for w in said]


def pairs(values):
    """12-bit numbers, two in three bytes."""
    return b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.reshape(-1, 2).tolist())


KNOWN = {  # content, what it shows: by what the file says
    "16 bits": (png(WIDE), GREY),
    "16 bits with alpha": (png(np.stack([WIDE, np.full_like(WIDE, 65535)], -1)), GREY),
    "16 bits of colour": (png(np.stack([WIDE] * 3, -1)), GREY),
    "16 bits, white is zero": (tiff(65535 - WIDE, white_is_zero=True), GREY),
    "16-bit colour TIFF": (tiff(np.stack([WIDE] * 3, -1)), GREY),
    "16-bit colour TIFF, big-endian": (tiff(np.stack([WIDE] * 3, -1).astype(">u2")), GREY),
    "12 bits": (tiff(WIDE >> 4, 12, pairs(WIDE >> 4)), GREY),
    "floats with tags": (tiff(GREY.astype(np.float32) * 3 - 70, tags=[(340, -70.0), (341, 695.0)]), GREY),
    "integers with tags": (tiff(GREY.astype(np.int32) * 1000, tags=[(340, 0.0), (341, 255000.0)]), GREY),
    "PGM of 10 bits": (b"P5 8 8 1023\n" + (WIDE >> 6).astype(">u2").tobytes(), GREY),
}
GUESSED = {  # content, what it shows, black and white: as the values suggest
    "floats in [0, 1]": (tiff(GREY.astype(np.float32) / 255), "0 and 1"),
    "floats in [-1, 1]": (tiff(GREY.astype(np.float32) / 127.5 - 1), "-1 and 1"),
    "floats to 255": (tiff(GREY.astype(np.float32)), "0 and 255"),
    "floats of CT": (tiff(GREY.astype(np.float32) * 10 - 1000), "-1000 and 1550"),
    "8 in 16 bits": (png(GREY.astype(np.uint16)), "0 and 255"),
    "12 in 16 bits": (png(WIDE >> 4), "0 and 4095"),
    "12 in 16 bits, TIFF": (tiff(WIDE >> 4), "0 and 4095"),
    "12 in 16 bits of colour": (png(np.stack([WIDE >> 4] * 3, -1)), "0 and 4095"),
    "8 in 16 bits of colour, TIFF": (tiff(np.stack([GREY] * 3, -1).astype(np.uint16)), "0 and 255"),
    "8 in 16 bits with alpha": (png(np.stack([GREY.astype(np.uint16), np.full_like(WIDE, 65535)], -1)), "0 and 255"),
    "int16 of CT": (tiff(GREY.astype(np.int16) * 16 - 1024), "-1024 and 3056"),
    "int16 of CT, big-endian": (tiff((GREY.astype(np.int16) * 16 - 1024).astype(">i2")), "-1024 and 3056"),
    "int32": (tiff(GREY.astype(np.int32)), "0 and 255"),
    "uint32 beyond the sign": (tiff(GREY.astype(np.uint32) << 24), "0 and 4.27819e+09"),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KNOWN)
def test_a_file_that_says_its_range_is_scaled_by_it(tmp_path, kind, channels):
    content, shows = KNOWN[kind]
    image, said = read(tmp_path, content, channels)
    assert np.abs(image.astype(int) - shows).max() <= 1 and said == []


@pytest.mark.parametrize("kind", GUESSED)
def test_another_is_guessed_and_the_guess_is_told(tmp_path, kind):
    content, guess = GUESSED[kind]
    image, said = read(tmp_path, content)
    assert np.abs(image.astype(int) - GREY).max() <= 1
    assert len(said) == 1 and f"taking {guess}" in said[0] and "value_range=(low, high)" in said[0]
    low, high = map(float, guess.split(" and "))
    again, said = read(tmp_path, content, value_range=(low, high))
    assert np.array_equal(again, image) and said == []


def test_a_value_range_stretches_any_file(tmp_path):
    stretched, said = read(tmp_path, encoded(GREY), 3, value_range=(50, 101))
    assert np.array_equal(stretched, np.stack([((GREY.astype(float) - 50) * 5).clip(0, 255)] * 3)) and said == []
    clear = np.dstack([GREY, np.where(GREY > 90, 255, 0).astype(np.uint8)])
    image, _ = read(tmp_path, encoded(clear), background=7, value_range=(0, 510))
    assert np.array_equal(image[0], np.where(GREY > 90, (GREY / 2).round(), 7))
    for wrong in ((1, 1), (2, 1), (0, np.inf), (0, 1, 2)):
        with pytest.raises(ValueError, match="value_range=.*; want .low, high."):
            data.folder(tmp_path, 8, value_range=wrong)


@FEW
@given(hnp.arrays(st.sampled_from([np.uint16, np.int16, np.uint32, np.int32]), (8, 8),
                  elements={"min_value": 0, "max_value": 30000}) |
       hnp.arrays(np.float32, (8, 8), elements=st.floats(-2**20, 2**20, width=32)))
def test_brighter_values_are_never_darker_and_nothing_comes_out_black(tmp_path_factory, values):
    image, said = read(tmp_path_factory.mktemp("x"), tiff(values))
    order = np.argsort(values, axis=None, kind="stable")
    assert (np.diff(image.ravel()[order].astype(int)) >= 0).all()
    if values.min() < values.max() and (values.dtype.kind == "f" or values.max() >= 64):
        assert image.max() >= 63  # a quarter of the way to white, at the least


@FEW
@given(hnp.arrays(np.float32, (8, 8), elements=st.floats(-1000, 1000, width=32)), st.floats(-500, 499),
       st.floats(1, 500))
def test_a_value_range_means_what_it_says(tmp_path_factory, values, low, width):
    image, said = read(tmp_path_factory.mktemp("x"), tiff(values), value_range=(low, low + width))
    assert np.abs(image[0] - ((values.astype(float) - low) / width * 255).clip(0, 255)).max() <= 0.51 and said == []


def test_nan_and_infinity_are_no_pictures(tmp_path):
    for bad in (np.nan, np.inf):
        values = GREY.astype(np.float32)
        values[3, 3] = bad
        with pytest.raises(ValueError, match="a.tif: not a readable image .holds NaN or infinite values"):
            read(tmp_path, tiff(values), value_range=(0, 255))


def test_one_guess_serves_all_files_of_a_folder(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.tif").write_bytes(tiff((GREY.astype(np.uint16) * 16) >> i))
    (tmp_path / "5.tif").write_bytes(tiff(GREY.astype(np.float32) / 255))
    Image.fromarray(GREY).save(tmp_path / "6.png")
    with pytest.warns(PDAEWarning) as said:
        images = data.folder(tmp_path, 8, 1)
    assert [str(w.message).partition(":")[2].partition(",")[0] for w in said] == [" 16-bit integers", " floats"]
    for i in range(5):
        assert np.abs(images[i].numpy().astype(int) - (GREY >> i)).max() <= 1
    assert all(np.abs(images[i].numpy().astype(int) - GREY).max() <= 1 for i in (5, 6))
    (tmp_path / "0.tif").write_bytes(tiff(WIDE))  # brighter than what was seen
    with pytest.warns(PDAEWarning, match="0.tif: values run from 0 to 65535, beyond the 0 and 4095 .* are cut"):
        assert int(images[0].max()) == 255


def test_pictures_in_an_lmdb_are_scaled_alike(tmp_path):
    pytest.importorskip("lmdb")
    path = write_lmdb(tmp_path / "x.lmdb", {f"8-{i:05d}": png((WIDE >> 4) >> i) for i in range(3)}, 3)
    with pytest.warns(PDAEWarning, match="16-bit integers, .*taking 0 and 4095"):
        images = data.lmdb(path, 8, channels=1)
    assert all(np.abs(images[i].numpy().astype(int) - (GREY >> i)).max() <= 1 for i in range(3))
    assert np.array_equal(data.lmdb(path, 8, channels=1, value_range=(0, 4095))[0], images[0])


# ---- transparency, orientation, pages --------------------------------------------------------------------------------


def test_a_16_bit_png_keeps_its_transparency(tmp_path):
    spot = np.zeros_like(GREY, bool)
    spot[2, 5] = True
    for content in (png(WIDE, clear=WIDE[2, 5]),
                    png(np.stack([WIDE, np.where(spot, 0, 65535).astype(np.uint16)], -1)),
                    png(np.stack([WIDE + 0, WIDE, WIDE], -1), clear=[WIDE[2, 5]] * 3),
                    png(np.stack([WIDE, WIDE, WIDE, np.where(spot, 0, 65535).astype(np.uint16)], -1))):
        image, said = read(tmp_path, content, name="a.png", background=3)
        assert np.array_equal(image[0], np.where(spot, 3, GREY)) and said == []
    near = WIDE.copy()
    near[2, 6] = near[2, 5] + 1  # the same upper byte, and not transparent
    image, _ = read(tmp_path, png(np.stack([near] * 3, -1), clear=[near[2, 5]] * 3), name="a.png", background=0)
    assert image[0, 2, 5] == 0 and image[0, 2, 6] > 0


def test_a_4_bit_png_keeps_its_transparency(tmp_path):
    values = np.arange(16, dtype=np.uint8).reshape(4, 4)
    image, _ = read(tmp_path, png(values, clear=6, bits=4), name="a.png", size=4)
    assert np.array_equal(image[0], np.where(values == 6, 255, values * 17))


def turned(array, orientation):
    """The pixels that a camera stores for an upright picture with this EXIF tag."""
    return {1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1], 5: array.T, 6: np.rot90(array),
            7: array[::-1, ::-1].T,
            8: np.rot90(array, -1)}[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright_and_exif_is_not_rewritten(tmp_path, monkeypatch, orientation):
    monkeypatch.setattr(Image.Exif, "tobytes", lambda *a, **k: pytest.fail("EXIF was written"))
    for array in (GREY, WIDE):
        path = tmp_path / "a.png"
        stored = np.ascontiguousarray(turned(array, orientation))
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0\0\0\0\0\0"
        Image.fromarray(stored).save(path, exif=exif)
        assert np.array_equal(data.read_image(path, 1, 8)[0], GREY)


@FEW
@given(st.binary(max_size=40))
def test_damaged_exif_spoils_no_picture(tmp_path_factory, junk):
    path = tmp_path_factory.mktemp("x") / "a.jpg"
    path.write_bytes(encoded(picture(8, 8), "JPEG", quality=100, exif=b"Exif\0\0" + junk))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own
        assert data.read_image(path, 3, 8).shape == (3, 8, 8)


def test_further_pages_are_told(tmp_path):
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    first.save(tmp_path / "z.tif", save_all=True, append_images=[second])
    with pytest.warns(PDAEWarning, match=r"1 of 1 files hold several pages, of which only the first is taken, such as "
                                         r"z\.tif"):
        images = data.folder(tmp_path, 8, 1)
    assert np.array_equal(images[0][0], GREY)
    alone, said = read(tmp_path, (tmp_path / "z.tif").read_bytes())
    assert np.array_equal(alone[0], GREY) and said == [f"{tmp_path / 'a.tif'}: the first of 2 pages is taken"]


FORMATS = {"a.png": encoded(picture(16, 16)), "b.jpg": encoded(picture(16, 16), "JPEG"), "c.gif": encoded(GREY, "GIF"),
           "d.bmp": encoded(picture(16, 16), "BMP"), "e.webp": encoded(picture(16, 16), "WEBP"),
           "f.tif": tiff(GREY.astype(np.float32)),
           "g.png": png(np.stack([WIDE] * 3, -1)), "h.tif": encoded(picture(16, 16), "TIFF", compression="tiff_lzw"),
           "i.ppm": encoded(picture(16, 16), "PPM"), "j.pgm": KNOWN["PGM of 10 bits"][0]}


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.sampled_from(sorted(FORMATS)),
       st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
       st.floats(0.1, 1))
def test_a_damaged_file_gives_a_picture_or_one_line(tmp_path_factory, name, bytes_, kept):
    content = bytearray(FORMATS[name])
    for where, value in bytes_:
        content[int(where * len(content))] = value
    path = tmp_path_factory.mktemp("x") / name
    path.write_bytes(content[: round(kept * len(content))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = data.read_image(path, 3, 8)
        except ValueError as e:
            assert name in str(e) and "\n" not in str(e)
        else:
            assert image.shape == (3, 8, 8) and image.dtype == torch.uint8
            # files are never written
            assert io.BytesIO(path.read_bytes()).getbuffer().nbytes == round(kept * len(content))
