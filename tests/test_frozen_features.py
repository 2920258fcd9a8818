"""Frozen features: what they hold, when they are made again, how they go on after a kill, and whose they are."""

import json
import shutil

import numpy as np
import pytest
import torch
from noise import NoisePixels

from chexstudy.arrays import GrowingArray
from chexstudy.encoders import frozen_features as features_module
from chexstudy.encoders.build import build_image_encoder
from chexstudy.encoders.frozen_features import drop_patches, freeze_features, read_features
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.errors import StudyError
from chexstudy.runs import Run

_HALF = EncoderSpec("tiny-vit", image_size=24, normalisation="half")
IMAGES = [f"tiny/{number:02d}" for number in range(21)]


@pytest.fixture(scope="module")
def encoder():
    return build_image_encoder(EncoderSpec("tiny-vit", image_size=24))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(features_module, "_PART_ROWS", 8)
    monkeypatch.setattr(features_module, "_BATCH", 3)


def freeze(run, encoder, pixels=None, image_ids=IMAGES, **options):
    return freeze_features(run, "curated/seed0", encoder, image_ids, pixels or NoisePixels(), **options)


def read_files(run):
    folder = run.path("features/curated/seed0")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_features_are_what_the_encoder_gives(home, encoder):
    order = IMAGES[::-1]
    made = freeze(Run("study"), encoder, image_ids=order)
    pixels = torch.from_numpy(NoisePixels().read(order)).unsqueeze(1)
    with torch.no_grad():
        pooled, cls, patches = encoder.embed_blocks(pixels, 3)
    np.testing.assert_allclose(made.pooled, pooled.numpy(), atol=1e-5)
    np.testing.assert_allclose(made.cls, cls.numpy(), atol=1e-5)
    np.testing.assert_allclose(made.mean, patches.mean(1).numpy(), atol=1e-5)
    np.testing.assert_allclose(made.patches, patches.numpy(), atol=2e-3, rtol=1e-3)
    assert [array.dtype for array in (made.pooled, made.cls, made.mean, made.patches)] == [np.float32] * 3 + [
        np.float16
    ]
    assert isinstance(made.patches, np.memmap)
    assert made.patches.shape == (21, 4, 384)
    assert (made.widths, made.grid, made.image_ids) == ((128, 128, 128), 2, order)
    assert made.encoder["weights"] == encoder.describe()["weights"]


def test_the_last_four_blocks_are_kept_or_all_there_are_and_stages_come_on_one_grid(home, encoder):
    assert len(freeze(Run("study"), encoder).widths) == 3
    resnet = build_image_encoder(EncoderSpec("tiny-resnet", image_size=24))
    made = freeze(Run("other"), resnet)
    assert (made.widths, made.grid, made.patches.shape) == ((16, 32, 64, 128), 3, (21, 9, 240))


def test_rows_are_found_by_image(home, encoder):
    made = freeze(Run("study"), encoder)
    rows = made.rows([IMAGES[5], IMAGES[0], IMAGES[5]])
    assert rows.dtype == np.int64
    assert rows.tolist() == [5, 0, 5]
    with pytest.raises(StudyError, match=r"1 of 2 images have no frozen features \(the first is number 1 of those"):
        made.rows([IMAGES[0], "tiny/99"])


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(home, encoder):
    whole, killed = Run("whole"), Run("killed")
    freeze(whole, encoder)
    with pytest.raises(KeyboardInterrupt):
        freeze(killed, encoder, NoisePixels(IMAGES[10]))
    with pytest.raises(StudyError, match="run 09_adapt_encoder"):
        read_features(killed, "curated/seed0")
    pixels = NoisePixels()
    freeze(killed, encoder, pixels)
    # The first image is looked at once to learn the number of patches.
    assert pixels.read_ids == [IMAGES[0], *IMAGES[8:]]
    assert read_files(killed) == read_files(whole)
    assert sorted(read_files(whole)) == [
        "cls.npy",
        "ids.parquet",
        "layout.json",
        "mean.npy",
        "patches.npy",
        "pooled.npy",
    ]


def test_a_kill_between_the_files_of_a_part_loses_that_part_only(home, encoder, monkeypatch):
    whole, killed = Run("whole"), Run("killed")
    freeze(whole, encoder)
    flush = GrowingArray.flush

    def die(array):
        if array.final.name == "patches.npy" and array.rows > 8:
            raise KeyboardInterrupt
        flush(array)

    with monkeypatch.context() as patched:
        patched.setattr(GrowingArray, "flush", die)
        with pytest.raises(KeyboardInterrupt):
            freeze(killed, encoder)
    pixels = NoisePixels()
    freeze(killed, encoder, pixels)
    assert pixels.read_ids == [IMAGES[0], *IMAGES[8:]]
    assert read_files(killed) == read_files(whole)


def test_a_part_is_small_where_images_have_many_patches(home, encoder, monkeypatch):
    # 4 patches of 384 channels in 2 bytes, and 128 + 2 x 384 numbers in 4 bytes: 6,656 bytes an image.
    monkeypatch.setattr(features_module, "_PART_BYTES", 3 * 6656)
    with pytest.raises(KeyboardInterrupt):
        freeze(Run("study"), encoder, NoisePixels(IMAGES[4]))
    assert json.loads(Run("study").path("features/curated/seed0/cls.growing.json").read_bytes())["rows"] == 3


def test_current_features_are_read_and_serve_without_patches_too(home, encoder):
    run = Run("study")
    freeze(run, encoder)
    for patches in (True, False):
        pixels = NoisePixels()
        assert freeze(run, encoder, pixels, patches=patches).patches is not None
        assert pixels.read_ids == []


def test_dropped_patches_leave_vectors_that_are_current(home, encoder):
    run, name = Run("study"), "curated/seed0"
    before = freeze(run, encoder)
    drop_patches(run, name)
    drop_patches(run, name)
    assert not run.has(f"features/{name}/patches.npy")
    unread = NoisePixels()
    after = freeze(run, encoder, unread, patches=False)
    assert (after.patches, set(unread.read_ids) <= {IMAGES[0]}) == (None, True)
    np.testing.assert_array_equal(after.pooled, before.pooled)
    assert freeze(run, encoder).patches is not None


def test_patches_are_left_out_where_they_are_not_asked_for(home, encoder):
    run = Run("study")
    made = freeze(run, encoder, patches=False)
    assert made.patches is None
    assert not run.has("features/curated/seed0/patches.npy")
    pixels = NoisePixels()
    freeze(run, encoder, pixels, patches=False)
    assert pixels.read_ids == []
    both = freeze(run, encoder)
    assert np.array_equal(both.mean, made.mean)
    assert both.patches is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda run, encoder: (build_image_encoder(EncoderSpec("tiny-vit", image_size=24), seed=1), {}),
        lambda run, encoder: (build_image_encoder(_HALF), {}),
        lambda run, encoder: (encoder, {"image_ids": IMAGES[1:]}),
        lambda run, encoder: (run.write_json("pixels/manifest.json", {"size": 48}), (encoder, {}))[1],
    ],
    ids=["weights", "normalisation", "images", "pixels"],
)
def test_stale_features_are_made_again(home, encoder, change):
    run = Run("study")
    run.write_json("pixels/manifest.json", {"size": 24})
    freeze(run, encoder)
    encoder, options = change(run, encoder)
    pixels = NoisePixels()
    made = freeze(run, encoder, pixels, **options)
    assert set(pixels.read_ids) == set(made.image_ids)
    fresh = freeze(Run("other"), encoder, **options)
    assert np.array_equal(made.patches, fresh.patches)
    assert np.array_equal(made.cls, fresh.cls)


def test_channels_are_measured_over_the_patches_of_images(home, encoder, monkeypatch):
    features = freeze(Run("study"), encoder)
    mean, spread = features.measure_channels(IMAGES[4:9])
    patches = features.patches[4:9].astype(float).reshape(-1, sum(features.widths))
    np.testing.assert_allclose(mean, patches.mean(0), atol=1e-5)
    np.testing.assert_allclose(spread, patches.std(0), atol=1e-5)
    monkeypatch.setattr(features_module, "_MEASURED", 2)
    some = features.measure_channels(IMAGES)[0]
    np.testing.assert_allclose(some, features.patches[[0, 20]].astype(float).mean((0, 1)), atol=1e-5)
    with pytest.raises(StudyError, match="hold no patches"):
        freeze(Run("other"), encoder, patches=False).measure_channels(IMAGES)


def test_features_know_their_encoder(home, encoder):
    made = freeze(Run("study"), encoder)
    made.check_encoder(encoder.describe() | {"name": "moved elsewhere", "revision": "abc"})
    # As it comes back from JSON, where a tuple is a list.
    made.check_encoder(json.loads(json.dumps(encoder.describe())))
    other = build_image_encoder(EncoderSpec("tiny-vit", image_size=24), seed=1)
    with pytest.raises(StudyError, match=r"of another encoder \(weights .*freeze the features of its encoder"):
        made.check_encoder(other.describe())
    with pytest.raises(StudyError, match=r"of another encoder \(image_size 36"):
        made.check_encoder(encoder.describe() | {"image_size": 36})


@pytest.mark.parametrize("spoilt", [float("nan"), 1e6])
def test_features_that_float16_cannot_hold_are_refused(home, encoder, monkeypatch, spoilt):
    embed = encoder.embed_blocks

    def spoil(pixels, blocks):
        pooled, cls, patches = embed(pixels, blocks)
        patches[0, 0, 0] = spoilt
        return pooled, cls, patches

    monkeypatch.setattr(encoder, "embed_blocks", spoil)
    with pytest.raises(StudyError, match="not finite or too large for float16"):
        freeze(Run("study"), encoder)


def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(home, encoder, full_disk):
    run = Run("study")
    with pytest.raises(StudyError, match="free some space"), full_disk(30_000):
        freeze(run, encoder)
    assert not run.has("features/curated/seed0/layout.json")
    assert freeze(run, encoder).patches.shape == (21, 4, 384)


@pytest.mark.parametrize(
    ("name", "image_ids", "message"),
    [
        ("../elsewhere", IMAGES, "features need a name such as 'curated/seed0'"),
        ("/curated", IMAGES, "features need a name"),
        ("", IMAGES, "features need a name"),
        ("curated//seed0", IMAGES, "features need a name"),
        ("curated", [], "no images to compute features of"),
        ("curated", [IMAGES[0], IMAGES[0]], "pass each image_id once"),
    ],
)
def test_what_cannot_be_frozen_is_refused(home, encoder, name, image_ids, message):
    with pytest.raises(StudyError, match=message):
        freeze_features(Run("study"), name, encoder, image_ids, NoisePixels())


def test_missing_and_damaged_features_say_what_to_do(home, encoder):
    run = Run("study")
    with pytest.raises(StudyError, match="run 09_adapt_encoder first"):
        read_features(run, "curated/seed0")
    freeze(run, encoder)
    run.write_array("features/curated/seed0/mean.npy", np.zeros((3, 384), np.float32))
    with pytest.raises(StudyError, match=r"layout\.json of study 'study' was written with another .*mean\.npy than"):
        read_features(run, "curated/seed0")
    shutil.rmtree(run.path("provenance"))
    with pytest.raises(StudyError, match=r"are damaged, for their files differ in rows: delete .*layout\.json"):
        read_features(run, "curated/seed0")


def test_damaged_features_are_not_read_and_made_again(home, encoder, monkeypatch):
    monkeypatch.setattr("chexstudy.runs._SECONDS_OF_A_REPLACEMENT", 0)
    run = Run("study")
    freeze(run, encoder)
    before = read_files(run)
    for name, whole in before.items():
        path = run.path(f"features/curated/seed0/{name}")
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(StudyError, match="it was damaged or changed: run 09_adapt_encoder again"):
            read_features(run, "curated/seed0")
        freeze(run, encoder)
        assert read_files(run) == before


def test_an_unfinished_part_that_was_damaged_is_made_again(home, encoder):
    whole, broken = Run("whole"), Run("broken")
    freeze(whole, encoder)
    with pytest.raises(KeyboardInterrupt):
        freeze(broken, encoder, NoisePixels(IMAGES[-1]))
    part = broken.path("features/curated/seed0/pooled.growing.npy")
    content = part.read_bytes()
    part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    freeze(broken, encoder)
    assert read_files(broken) == read_files(whole)
