"""Own images: the layouts that are taken, what is left out and why, and that serving sees the same pixels."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.data.dataset import Dataset, DatasetError
from tasks.data.folder import Checked, classes_of, listed, load, local_entries, stored_entries, told
from tasks.data.pictures import as_served, thumbnail

CLASSES = ("cat", "dog")


def picture(seed: int, size: tuple[int, int] = (60, 40), kind: str = "PNG", **more: object) -> bytes:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(buffer, kind, **more)
    return buffer.getvalue()


def fill(folder: Path, *classes: str, first: int = 0, each: int = 14) -> Path:
    """A folder per class with that many different images."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(each):
            seed = first + 1000 * number + index
            (folder / name / f"IMG {seed}.png").write_bytes(picture(seed))
    return folder


def read(path: Path, strict: bool = False, share: float = 0.3) -> Checked:
    entries = local_entries(path)
    classes = classes_of(entries, str(path))
    return load(
        entries,
        classes,
        size=32,
        share=share,
        strict=strict,
        where=str(path),
        source=path.name,
        progress=lambda line: None,
    )


def counts(dataset: Dataset) -> dict[str, list[int]]:
    return {name: np.bincount(split.labels).tolist() for name, split in vars(dataset).items() if name in SPLITS}


SPLITS = ("train", "test")


def test_a_folder_per_class_is_split_by_content_and_the_same_each_time(tmp_path: Path) -> None:
    folder = fill(tmp_path / "pets", *CLASSES, each=30)
    checked, again = read(folder), read(folder)
    dataset = checked.dataset
    assert dataset.classes == CLASSES and not dataset.left_out and not checked.warnings
    assert len(dataset.train.names) + len(dataset.test.names) == 60
    assert dataset.test.names == again.dataset.test.names and (dataset.test.pixels == again.dataset.test.pixels).all()
    # A further image changes the split of none that was there.
    (folder / "cat" / "new.png").write_bytes(picture(77))
    more = read(folder).dataset
    assert set(dataset.test.names) <= set(more.test.names) and set(dataset.train.names) <= set(more.train.names)
    assert all(name.startswith(("cat_IMG-", "dog_IMG-")) for name in dataset.train.names)


def test_a_small_class_is_tested_too(tmp_path: Path) -> None:
    fill(tmp_path, *CLASSES, each=12)
    assert counts(read(tmp_path, share=0.001).dataset) == {"train": [10, 10], "test": [2, 2]}


def test_train_and_test_above_the_classes_are_kept(tmp_path: Path) -> None:
    fill(tmp_path / "training", *CLASSES, each=12)
    fill(tmp_path / "Test", *CLASSES, first=500, each=3)
    assert counts(read(tmp_path).dataset) == {"train": [12, 12], "test": [3, 3]}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_list_of_paths_and_labels(tmp_path: Path, kind: str) -> None:
    fill(tmp_path, *CLASSES, each=14)
    rows = [
        {"path": f"{name}/IMG {1000 * label + index}.png", "label": name, "split": "test" if index < 3 else "train"}
        for label, name in enumerate(CLASSES)
        for index in range(14)
    ]
    if kind == "csv":
        text = "path,label,split\n" + "".join(f"{row['path']},{row['label']},{row['split']}\n" for row in rows)
    else:
        text = "".join(json.dumps(row) + "\n\n" for row in rows)
    (tmp_path / f"images.{kind}").write_text("\ufeff" + text, encoding="utf-8")
    assert counts(read(tmp_path / f"images.{kind}").dataset) == {"train": [11, 11], "test": [3, 3]}


def test_a_prefix_in_s3_is_read_as_a_folder_is() -> None:
    contents = {f"pets/{name}/{index}.jpg": picture(index, kind="JPEG") for name in CLASSES for index in range(3)}
    contents |= {"pets/readme.txt": b"", "pets/.git/cat/x.png": b""}
    entries = stored_entries(list(contents), "pets/", contents.__getitem__)
    assert [(entry.path, entry.label, entry.split) for entry in entries][:2] == [
        ("cat/0.jpg", "cat", None),
        ("cat/1.jpg", "cat", None),
    ]
    assert len(entries) == 6 and entries[4].read() == contents["pets/dog/1.jpg"]


@pytest.mark.parametrize(
    "content",
    [
        picture(9001),
        picture(9002, (400, 30), "JPEG", quality=80),
        picture(9003, (33, 500), "JPEG", exif=Image.Exif()),
        picture(9004, (20, 20)),
    ],
)
def test_training_sees_the_pixels_that_serving_sees(tmp_path: Path, content: bytes) -> None:
    """tests/unit/test_classifier.py compares as_served with what the endpoint's code does, pixel by pixel."""
    fill(tmp_path, *CLASSES)
    ending = "png" if content.startswith(b"\x89PNG") else "jpg"
    (tmp_path / "cat" / f"this.{ending}").write_bytes(content)
    dataset = read(tmp_path).dataset
    (found,) = [
        split.pixels[index]
        for split in (dataset.train, dataset.test)
        for index, name in enumerate(split.names)
        if "_this_" in name
    ]
    expected = as_served(content, 32)
    assert expected is not None and (found == expected).all()


def test_turned_photographs_are_upright(tmp_path: Path) -> None:
    fill(tmp_path, *CLASSES)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = picture(5, (60, 40), "JPEG", exif=exif)
    with Image.open(io.BytesIO(turned)) as image:
        assert image.size == (60, 40)
    pixels = as_served(turned, 32)
    plain = as_served(picture(5, (60, 40), "JPEG"), 32)
    assert pixels is not None and plain is not None and not (pixels == plain).all()


def broken(folder: Path) -> None:
    (folder / "cat" / "broken.png").write_bytes(picture(900)[:200])


def empty(folder: Path) -> None:
    (folder / "cat" / "empty.jpg").write_bytes(b"")


def text(folder: Path) -> None:
    (folder / "cat" / "text.jpeg").write_bytes(b"no image")


def doubled(folder: Path) -> None:
    (folder / "cat" / "copy.png").write_bytes((folder / "cat" / "IMG 0.png").read_bytes())


def contradicting(folder: Path) -> None:
    (folder / "dog" / "copy.png").write_bytes((folder / "cat" / "IMG 0.png").read_bytes())


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (broken, "is no PNG, JPEG or WebP that can be decoded"),
        (empty, "is no PNG, JPEG or WebP that can be decoded"),
        (text, "is no PNG, JPEG or WebP that can be decoded"),
        (doubled, "the same image as cat/"),
        (contradicting, "which is labelled"),
    ],
)
def test_what_is_wrong_is_left_out_and_told_or_refused(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    fill(tmp_path, *CLASSES)
    spoil(tmp_path)
    checked = read(tmp_path)
    (left_out,) = checked.dataset.left_out
    assert says in left_out.why
    assert len(checked.dataset.train.names) + len(checked.dataset.test.names) == 28
    with pytest.raises(DatasetError, match="SCONES_DATASET_STRICT is set"):
        read(tmp_path, strict=True)


@pytest.mark.parametrize("again", ["same", "recompressed"])
def test_an_image_of_both_splits_is_only_for_testing(tmp_path: Path, again: str) -> None:
    fill(tmp_path / "train", *CLASSES, each=12)
    fill(tmp_path / "test", *CLASSES, first=500, each=3)
    original = tmp_path / "test" / "cat" / "IMG 500.png"
    content = original.read_bytes()
    if again == "recompressed":
        buffer = io.BytesIO()
        Image.open(original).resize((120, 80)).save(buffer, "JPEG", quality=85)
        content = buffer.getvalue()
    (tmp_path / "train" / "cat" / "leak.jpg").write_bytes(content)
    checked = read(tmp_path)
    (left_out,) = checked.dataset.left_out
    assert left_out.path == "train/cat/leak.jpg" and "the other split" in left_out.why
    assert counts(checked.dataset) == {"train": [12, 12], "test": [3, 3]}


def test_a_class_a_hundred_times_another_is_told(tmp_path: Path) -> None:
    fill(tmp_path / "train", "cat", each=10)
    fill(tmp_path / "train", "dog", first=5000, each=1000)
    fill(tmp_path / "test", *CLASSES, first=90_000, each=2)
    (warning,) = read(tmp_path).warnings
    assert warning == "one class has 1000 training images, another one 10"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("cat",), "images of 1 classes"),
        ((), "images of 0 classes"),
        (tuple(f"c{number}" for number in range(101)), "images of 101 classes"),
        (("cat", "a,b"), "can't be the name of a class"),
        (("cat", "ä"), "can't be the name of a class"),
    ],
)
def test_classes_that_make_no_sense_are_refused(tmp_path: Path, names: tuple[str, ...], says: str) -> None:
    fill(tmp_path, *names, each=1)
    with pytest.raises(DatasetError, match=says):
        classes_of(local_entries(tmp_path), str(tmp_path))


def test_too_few_images_are_refused_with_their_class(tmp_path: Path) -> None:
    fill(tmp_path, *CLASSES, each=4)
    with pytest.raises(DatasetError, match=r"too few images to train with: cat \(\d\), dog \(\d\); 10 of each"):
        read(tmp_path)


def test_images_above_the_classes_and_half_a_split_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "train", *CLASSES, each=1)
    with pytest.raises(DatasetError, match="train/ and test/ above all classes, or above none"):
        local_entries(tmp_path)
    (tmp_path / "loose.png").write_bytes(picture(1))
    with pytest.raises(DatasetError, match=r"loose\.png is in no class's folder"):
        local_entries(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "file,class\na.png,cat\n", "record 1 has no path and label"),
        ("a.csv", "path,label,split\na.png,cat,other\n", "of split 'other'"),
        ("a.jsonl", "{\n", "line 1 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("a.jsonl", '{"path": 1, "label": "cat"}\n', "record 1 has no path and label"),
        ("a.csv", "path,label,split\na.png,cat,train\nb.png,dog,\n", "1 train, 1 without a split"),
    ],
)
def test_lists_that_make_no_sense_are_refused(name: str, content: str, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        listed(content, name, lambda path: lambda: b"")


def test_many_problems_are_told_in_few_lines(tmp_path: Path) -> None:
    fill(tmp_path, *CLASSES)
    for number in range(25):
        (tmp_path / "cat" / f"broken-{number}.png").write_bytes(b"")
    lines = list(told(read(tmp_path).dataset.left_out))
    assert len(lines) == 11 and lines[-1] == "and 15 more"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_on_a_page_is_small_and_of_a_kind_that_browsers_show(kind: str) -> None:
    small, large = picture(1, (40, 30), kind), picture(1, (2000, 1500), kind, quality=95)
    assert thumbnail(small) == small or kind == "WEBP"
    for content, side in ((small, 40), (large, 256)):
        shown = thumbnail(content)
        assert shown is not None
        with Image.open(io.BytesIO(shown)) as image:
            assert image.format in ("PNG", "JPEG") and max(image.size) <= side
    assert thumbnail(large[: len(large) // 3]) is None and thumbnail(b"no image") is None


def test_a_jpeg_of_more_pixels_than_are_decoded_whole_is_taken() -> None:
    buffer = io.BytesIO()
    Image.effect_mandelbrot((6000, 5000), (-2, -1, 1, 1), 9).convert("RGB").save(buffer, "JPEG", quality=90)
    seen = as_served(buffer.getvalue(), 32)
    with Image.open(buffer) as image:
        small = np.asarray(image.resize((32, 32), Image.Resampling.BOX))
    assert seen is not None and np.abs(seen.astype(int) - small).mean() < 8
