import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.data.dataset import (
    DatasetError,
    download,
    from_archive,
    generated,
    manifest,
    official_test_images,
    png,
    resized,
)
from tasks.data.generated import FAR, NEAR, draw

CLASSES = ("bicycle", "motorcycle")
FINE = [b"apple", b"bicycle", b"motorcycle"]


def batch(labels: list[int], seed: int) -> dict[bytes, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    names = [f"image_{seed}_{index}.png".encode() for index in range(len(labels))]
    return {b"data": pixels, b"fine_labels": labels, b"filenames": names}


def archive(path: Path, **members: Any) -> Path:
    """An archive in CIFAR-100's layout; members are objects to pickle, or bytes as they are."""
    content = {"meta": {b"fine_label_names": FINE}, "train": batch([0, 1, 2, 1], 1), "test": batch([2, 1, 0], 2)}
    with tarfile.open(path, "w:gz") as tar:
        for name, value in {**content, **members}.items():
            data = value if isinstance(value, bytes) else pickle.dumps(value, protocol=3)
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_an_archive_gives_the_images_of_the_wanted_classes(tmp_path: Path) -> None:
    dataset = from_archive(archive(tmp_path / "a.tar.gz"), CLASSES)
    assert dataset.train.labels.tolist() == [0, 1, 0]
    assert dataset.test.labels.tolist() == [1, 0]
    assert dataset.train.pixels.shape == (3, 32, 32, 3)
    raw = batch([0, 1, 2, 1], 1)[b"data"][1].reshape(3, 32, 32)
    assert (dataset.train.pixels[0] == raw.transpose(1, 2, 0)).all()


def test_a_manifest_has_index_label_and_path(tmp_path: Path) -> None:
    dataset = from_archive(archive(tmp_path / "a.tar.gz"), CLASSES)
    assert manifest(dataset.test) == "0\t1\timage_2_0.png\n1\t0\timage_2_1.png\n"


def test_a_missing_archive_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no archive at .*; give the path"):
        from_archive(tmp_path / "none.tar.gz", CLASSES)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_archive_is_named(tmp_path: Path, keep: float) -> None:
    path = archive(tmp_path / "a.tar.gz")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep > 1 else keep * len(whole))])
    with pytest.raises(DatasetError, match="not a readable archive"):
        from_archive(path, CLASSES)


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch /tmp/scones-was-here",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"asks for posix\.system"):
        from_archive(archive(tmp_path / "a.tar.gz", train=Evil()), CLASSES)
    assert not Path("/tmp/scones-was-here").exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"train": b"nonsense"}, "not a readable archive"),
        ({"train": [1, 2]}, "not a dictionary"),
        ({"train": {b"data": 1, b"fine_labels": [1]}}, "32x32"),
        ({"test": batch([1, 1], 2)}, "test set .* has no image of motorcycle"),
        ({"test": batch([], 2)}, "test set .* has no image of bicycle, motorcycle"),
        ({"test": batch([0, 1, 2, 1], 1)}, "3 images of .* are in both splits"),
        ({"test": {**batch([1, 2], 2), b"filenames": [b"x.png", b"x.png"]}}, "file name twice"),
        ({"test": {**batch([1, 2], 2), b"filenames": [b"../x.png", b"y.png"]}}, "unusable file name"),
    ],
)
def test_a_wrong_archive_is_explained(tmp_path: Path, members: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        from_archive(archive(tmp_path / "a.tar.gz", **members), CLASSES)


def test_an_unknown_class_is_answered_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no class tricycle; it has apple, bicycle"):
        from_archive(archive(tmp_path / "a.tar.gz"), ("bicycle", "tricycle"))


def test_the_official_archive_must_have_the_published_counts(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="expected 500"):
        from_archive(archive(tmp_path / "a.tar.gz"), CLASSES, official=True)


def test_the_test_images_of_every_class_are_those_of_the_official_archive_alone(tmp_path: Path) -> None:
    test = batch([index % 3 for index in range(300)], 3)
    found = official_test_images(archive(tmp_path / "a.tar.gz", test=test))
    assert {name: images.shape for name, images in found.items()} == {name.decode(): (100, 32, 32, 3) for name in FINE}
    assert (found["bicycle"][0] == test[b"data"][1].reshape(3, 32, 32).transpose(1, 2, 0)).all()
    with pytest.raises(DatasetError, match="not every class has 100"):
        official_test_images(archive(tmp_path / "b.tar.gz"))
    with pytest.raises(DatasetError, match="not a readable archive"):
        official_test_images(tmp_path / "none.tar.gz")


def test_generated_images_are_the_same_every_time() -> None:
    first, second = generated(CLASSES, 3, 2), generated(CLASSES, 3, 2)
    assert (first.train.pixels == second.train.pixels).all()
    assert first.synthetic
    assert png(first.train.pixels[0]) == png(second.train.pixels[0])


def test_other_things_are_drawn_too_and_each_differently() -> None:
    assert len(NEAR) >= 3 and len(FAR) >= 6
    drawn = {name: [draw(name, seed) for seed in range(3)] for name in {**NEAR, **FAR}}
    assert len({image.tobytes() for images in drawn.values() for image in images}) == 3 * len(drawn)
    assert all((draw(name, 0) == images[0]).all() for name, images in drawn.items())


def test_a_class_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(DatasetError, match="not 'apple'"):
        generated(("bicycle", "apple"), 3, 2)


def test_a_linear_model_on_raw_pixels_does_not_solve_the_generated_images() -> None:
    dataset = generated(CLASSES, 250, 100)
    train = dataset.train.pixels.reshape(len(dataset.train.labels), -1) / 255
    test = dataset.test.pixels.reshape(len(dataset.test.labels), -1) / 255
    centre, target = train.mean(axis=0), 2.0 * dataset.train.labels - 1
    kernel = (train - centre) @ (train - centre).T
    for penalty in (10, 100, 1000):  # ridge regression, from nearly free to stiff
        weights = np.linalg.solve(kernel + penalty * np.eye(len(kernel)), target)
        predicted = (test - centre) @ (train - centre).T @ weights > 0
        assert (predicted == dataset.test.labels).mean() < 0.95


@pytest.fixture
def mirror() -> Iterator[tuple[str, bytes, list[str | None]]]:
    """An HTTP server with one file; yields its URL, the file and the Range headers it was asked with."""
    content, ranges = os.urandom(200_000), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            if start >= len(content):
                self.send_response(416)
                self.end_headers()
                return
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:])

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/data.tar.gz", content, ranges
    server.shutdown()
    server.server_close()


def test_a_download_goes_on_where_it_stopped(tmp_path: Path, mirror: tuple[str, bytes, list[str | None]]) -> None:
    url, content, ranges = mirror
    (tmp_path / "data.tar.gz.part").write_bytes(content[:50_000])
    path = download(url, hashlib.md5(content).hexdigest(), tmp_path, print)
    assert path.read_bytes() == content
    assert ranges == ["bytes=50000-"]


def test_a_download_that_was_complete_is_only_checked(
    tmp_path: Path, mirror: tuple[str, bytes, list[str | None]]
) -> None:
    url, content, _ = mirror
    (tmp_path / "data.tar.gz.part").write_bytes(content)
    assert download(url, hashlib.md5(content).hexdigest(), tmp_path, print).read_bytes() == content


def test_a_wrong_checksum_discards_the_download(tmp_path: Path, mirror: tuple[str, bytes, list[str | None]]) -> None:
    with pytest.raises(DatasetError, match="expected 0000"):
        download(mirror[0], "0000", tmp_path, print)
    assert list(tmp_path.iterdir()) == []


def test_a_server_out_of_reach_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="SCONES_CIFAR_URL"):
        download("http://127.0.0.1:9/data.tar.gz", "0000", tmp_path, print, patience=2)


def test_images_of_another_size_are_drawn_or_resized(tmp_path: Path) -> None:
    large = generated(CLASSES, 3, 2, 64)
    assert large.train.pixels.shape == (6, 64, 64, 3) and large.test.pixels.shape == (4, 64, 64, 3)
    small = from_archive(archive(tmp_path / "a.tar.gz"), CLASSES)
    assert resized(small, 32) is small
    twice = resized(small, 64)
    assert twice.train.pixels.shape == (3, 64, 64, 3) and twice.train.pixels.dtype == np.uint8
    assert np.abs(twice.train.pixels.mean(axis=(1, 2)) - small.train.pixels.mean(axis=(1, 2))).max() < 3
    assert (twice.train.names, twice.classes) == (small.train.names, small.classes)
