"""Embeddings: order, sharing and batching in memory; caching, staleness and resuming of a cohort."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from noise import NoisePixels

from chexstudy.encoders import embeddings as embedding
from chexstudy.encoders.build import build_image_encoder, build_text_encoder
from chexstudy.encoders.embeddings import embed_cohort, embed_images, embed_texts, read_embeddings
from chexstudy.encoders.spec import EncoderSpec
from chexstudy.errors import StudyError
from chexstudy.runs import Run

SENTENCES = ["No finding.", "Small left pleural effusion.", "Cardiomegaly.", "Right apical pneumothorax, small."]
REPORTS = [f"FINDINGS: {SENTENCES[row % 3]} IMPRESSION: {SENTENCES[row % 4]}" for row in range(21)]
_HALF = EncoderSpec("tiny-vit", image_size=24, normalisation="half")
COHORT = pd.DataFrame({"image_id": [f"phantom/{row:02d}" for row in range(21)], "report": REPORTS})


@pytest.fixture(scope="module")
def image_encoder():
    return build_image_encoder(EncoderSpec("tiny-vit", image_size=24))


@pytest.fixture(scope="module")
def text_encoder():
    return build_text_encoder(EncoderSpec("tiny-bert"), SENTENCES * 3)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(embedding, "_PART_ROWS", 8)


def count_channels(pixels):
    assert pixels.dtype == torch.uint8
    return torch.stack([pixels.float().mean((1, 2, 3)), torch.full((len(pixels),), len(pixels))], 1)


# --- in memory -------------------------------------------------------------------------------------------------------


def test_images_keep_their_order_in_batches_of_the_asked_size():
    pixels = np.arange(5, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    embedded = embed_images(count_channels, pixels, batch_size=2)
    assert embedded.dtype == np.float32
    assert embedded.tolist() == [[0, 2], [1, 2], [2, 2], [3, 2], [4, 1]]


def test_images_can_be_read_from_a_read_only_map(tmp_path):
    np.save(tmp_path / "images.npy", np.full((3, 4, 4), 7, np.uint8))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert embed_images(count_channels, mapped)[:, 0].tolist() == [7, 7, 7]


def test_each_distinct_text_is_embedded_once_among_texts_of_like_length():
    batches = []

    def tokenize(texts):
        batches.append(list(texts))
        lengths = torch.tensor([[len(text)] for text in texts])
        return {"input_ids": lengths, "attention_mask": torch.ones_like(lengths)}

    texts = ["ccc", "a", "", "ccc", "bb", "a", "dddd"]
    embedded = embed_texts(lambda ids, mask: ids * 10, tokenize, texts, batch_size=2)
    assert embedded.tolist() == [[30], [10], [0], [30], [20], [10], [40]]
    assert batches == [["", "a"], ["bb", "ccc"], ["dddd"]]


def test_batches_do_not_change_text_embeddings(text_encoder):
    one = embed_texts(text_encoder, text_encoder.tokenize, REPORTS, batch_size=1)
    all_at_once = embed_texts(text_encoder, text_encoder.tokenize, REPORTS, batch_size=64)
    np.testing.assert_allclose(one, all_at_once, atol=1e-6)
    with torch.no_grad():
        direct = text_encoder(**text_encoder.tokenize(REPORTS)).numpy()
    np.testing.assert_allclose(all_at_once, direct, atol=1e-6)


def test_nothing_to_embed_is_said(text_encoder, image_encoder):
    with pytest.raises(StudyError, match="no images to embed"):
        embed_images(image_encoder, np.zeros((0, 24, 24), np.uint8))
    with pytest.raises(StudyError, match="no texts to embed"):
        embed_texts(text_encoder, text_encoder.tokenize, [])


# --- of a cohort -----------------------------------------------------------------------------------------------------


def read_bytes(run, name="tiny"):
    return [run.path(f"embeddings/{name}/{file}").read_bytes() for file in ("image.npy", "text.npy", "ids.parquet")]


def test_rows_are_those_of_the_cohort(home, image_encoder, text_encoder):
    run = Run("study")
    cohort = COHORT.iloc[::-1]
    made = embed_cohort(run, cohort, NoisePixels(), image_encoder, text_encoder, "tiny")
    assert made.image_ids == cohort.image_id.tolist()
    expected = embed_images(image_encoder, NoisePixels().read(cohort.image_id.tolist()))
    np.testing.assert_allclose(made.image, expected, atol=1e-6)
    texts = [report.replace("FINDINGS: ", "").replace("IMPRESSION: ", "") for report in cohort.report]
    np.testing.assert_allclose(made.text, embed_texts(text_encoder, text_encoder.tokenize, texts), atol=1e-6)
    again = read_embeddings(run, "tiny")
    assert again.image_ids == made.image_ids
    assert np.array_equal(again.image, made.image)
    assert sorted(path.name for path in run.path("embeddings/tiny").iterdir()) == [
        "ids.parquet",
        "image.npy",
        "text.npy",
    ]


def test_a_broken_run_goes_on_and_ends_with_the_same_bytes(home, image_encoder, text_encoder):
    whole, broken = Run("whole"), Run("broken")
    embed_cohort(whole, COHORT, NoisePixels(), image_encoder, text_encoder, "tiny")
    with pytest.raises(KeyboardInterrupt):
        embed_cohort(broken, COHORT, NoisePixels("phantom/10"), image_encoder, text_encoder, "tiny")
    assert not broken.has("embeddings/tiny/ids.parquet")
    pixels = NoisePixels()
    embed_cohort(broken, COHORT, pixels, image_encoder, text_encoder, "tiny")
    assert pixels.read_ids == COHORT.image_id.tolist()[8:]
    assert read_bytes(broken) == read_bytes(whole)


def test_current_embeddings_are_read_and_not_made_again(home, image_encoder, text_encoder):
    run = Run("study")
    embed_cohort(run, COHORT, NoisePixels(), image_encoder, text_encoder, "tiny")
    pixels = NoisePixels()
    embed_cohort(run, COHORT, pixels, image_encoder, text_encoder, "tiny")
    assert pixels.read_ids == []


@pytest.mark.parametrize(
    "change",
    [
        lambda run, cohort, encoder: (cohort, build_image_encoder(EncoderSpec("tiny-vit", image_size=24), seed=1)),
        lambda run, cohort, encoder: (cohort, build_image_encoder(_HALF)),
        lambda run, cohort, encoder: (cohort.assign(report=["Hernia.", *cohort.report[1:]]), encoder),
        lambda run, cohort, encoder: (cohort.iloc[::-1], encoder),
        lambda run, cohort, encoder: (run.write_json("pixels/manifest.json", {"size": 48}), (cohort, encoder))[1],
    ],
    ids=["weights", "normalisation", "report", "order", "pixels"],
)
def test_stale_embeddings_are_made_again(home, image_encoder, text_encoder, change):
    run = Run("study")
    run.write_json("pixels/manifest.json", {"size": 24})
    embed_cohort(run, COHORT, NoisePixels(), image_encoder, text_encoder, "tiny")
    cohort, image_encoder = change(run, COHORT, image_encoder)
    pixels = NoisePixels()
    made = embed_cohort(run, cohort, pixels, image_encoder, text_encoder, "tiny")
    assert pixels.read_ids == cohort.image_id.tolist() == made.image_ids
    np.testing.assert_allclose(made.image, embed_images(image_encoder, NoisePixels().read(made.image_ids)), atol=1e-6)


def test_parts_of_a_stale_run_are_not_mixed_in(home, image_encoder, text_encoder):
    run = Run("study")
    with pytest.raises(KeyboardInterrupt):
        embed_cohort(run, COHORT, NoisePixels("phantom/10"), image_encoder, text_encoder, "tiny")
    other = build_image_encoder(EncoderSpec("tiny-vit", image_size=24), seed=1)
    made = embed_cohort(run, COHORT, NoisePixels(), other, text_encoder, "tiny")
    np.testing.assert_allclose(made.image, embed_images(other, NoisePixels().read(made.image_ids)), atol=1e-6)


def test_a_full_disk_is_one_sentence_and_costs_one_part(home, image_encoder, text_encoder, full_disk):
    run = Run("study")
    with full_disk(8 * 4 * image_encoder.dim), pytest.raises(StudyError, match="File too large; free some space"):
        embed_cohort(run, COHORT, NoisePixels(), image_encoder, text_encoder, "tiny")
    assert [path.name for path in run.path("embeddings/tiny").iterdir()] == ["image.growing.npy"]
    made = embed_cohort(run, COHORT, NoisePixels(), image_encoder, text_encoder, "tiny")
    np.testing.assert_allclose(made.image, embed_images(image_encoder, NoisePixels().read(made.image_ids)), atol=1e-6)


def test_an_empty_cohort_is_refused(home, image_encoder, text_encoder):
    with pytest.raises(StudyError, match="the cohort table is empty"):
        embed_cohort(Run("study"), COHORT.head(0), NoisePixels(), image_encoder, text_encoder, "tiny")


def test_missing_and_damaged_embeddings_say_what_to_run(home, image_encoder, text_encoder):
    run = Run("study")
    with pytest.raises(StudyError, match="run 02_embed_pairs"):
        read_embeddings(run, "tiny")
    embed_cohort(run, COHORT, NoisePixels(), image_encoder, text_encoder, "tiny")
    run.write_array("embeddings/tiny/text.npy", np.zeros((3, 128), np.float32))
    with pytest.raises(StudyError, match=r"ids\.parquet of study 'study' was written with another .*text\.npy than"):
        read_embeddings(run, "tiny")
    # Of the user's own, nothing is recorded.
    shutil.rmtree(run.path("provenance"))
    with pytest.raises(StudyError, match="21 ids, 21 images and 3 texts"):
        read_embeddings(run, "tiny")


@pytest.mark.parametrize("file", ["image.npy", "text.npy", "ids.parquet"])
def test_damaged_embeddings_are_not_read_and_made_again(home, image_encoder, text_encoder, file, capsys):
    run = Run("study")
    embed_cohort(run, COHORT, NoisePixels(), image_encoder, text_encoder, "tiny")
    before, path = read_bytes(run), run.path(f"embeddings/tiny/{file}")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StudyError, match="it was damaged or changed: run 02_embed_pairs"):
        read_embeddings(run, "tiny")
    embed_cohort(run, COHORT, NoisePixels(), image_encoder, text_encoder, "tiny")
    assert f"embeddings/tiny/{file} of study 'study' is not what was written there" in capsys.readouterr().out
    assert read_bytes(run) == before
