import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from chexstudy.errors import StudyError
from chexstudy.statistics.bootstrap import bootstrap_patients, count_scarcer_patients, paired_difference
from chexstudy.statistics.delong import contrast_p_value, correlate_areas
from chexstudy.statistics.ranking import auroc

# Made by pROC 1.18.0 in R 4.2.2, 17 digits printed, for each data set (labels l, scores a and b):
#   ra <- roc(l, a, levels=c(0,1), direction="<"); rb <- roc(l, b, levels=c(0,1), direction="<")
#   auc(ra); auc(rb); var(ra); var(rb); cov(ra, rb)
#   t <- roc.test(ra, rb, method="delong", paired=TRUE); t$p.value
# The third set, in R: i <- 0:59; l <- as.integer((7*i*i) %% 11 < 4)
#   a <- floor(((37*i) %% 101)/10) + 2*l; b <- floor(((53*i) %% 97)/10) + l
_STEPS = np.arange(60)
_PRESENT = ((7 * _STEPS * _STEPS) % 11 < 4).astype(int)
PROC = {
    "few": {
        "labels": [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        "first": [0.91, 0.82, 0.45, 0.77, 0.38, 0.12, 0.40, 0.33, 0.51, 0.08, 0.29, 0.61],
        "second": [0.85, 0.30, 0.52, 0.66, 0.47, 0.22, 0.58, 0.35, 0.44, 0.71, 0.10, 0.05],
        "areas": (0.85714285714285710, 0.74285714285714288),
        "variances": (0.01333333333333333592, 0.02367346938775510140),
        "covariance": -0.00034013605442177026,
        "p": 0.55606099526548158,
    },
    "ties": {
        "labels": [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
        "first": [1, 2, 2, 3, 1, 3, 4, 2, 3, 4, 5, 2, 5, 4, 3],
        "second": [2, 1, 3, 3, 2, 4, 1, 5, 3, 3, 4, 2, 5, 1, 4],
        "areas": (0.83035714285714279, 0.61607142857142860),
        "variances": (0.010807671282798834, 0.023259080417881439),
        "covariance": 0.001801278547133139,
        "p": 0.21955311734393645,
    },
    "many ties": {
        "labels": _PRESENT,
        "first": (37 * _STEPS) % 101 // 10 + 2 * _PRESENT,
        "second": (53 * _STEPS) % 97 // 10 + _PRESENT,
        "areas": (0.54787961696306431, 0.39534883720930231),
        "variances": (0.0059967151687449378, 0.0095039081391472373),
        "covariance": 0.0034179522586879688,
        "p": 0.10129084957520601,
    },
}


@pytest.mark.parametrize("name", PROC)
def test_values_of_proc_are_reproduced(name):
    case = PROC[name]
    scores = np.column_stack([case["first"], case["second"]])
    areas, covariance = correlate_areas(np.array(case["labels"]), scores)
    np.testing.assert_allclose(areas, case["areas"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.diag(covariance), case["variances"], rtol=0, atol=1e-12)
    assert covariance[0, 1] == pytest.approx(case["covariance"], abs=1e-12)
    assert contrast_p_value(areas, covariance) == pytest.approx(case["p"], abs=1e-12)


def compare_pairs(labels, scores):
    """Every positive with every negative: 1 if it scores higher, a half if they tie, ``(positives, negatives)``."""
    positives, negatives = scores[labels == 1], scores[labels == 0]
    return (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)


def covariance_by_components(labels, scores):
    """DeLong, DeLong and Clarke-Pearson (1988) as written, in O(n^2)."""
    pairs = [compare_pairs(labels, one) for one in scores.T]
    of_positives = np.stack([one.mean(axis=1) for one in pairs])
    of_negatives = np.stack([one.mean(axis=0) for one in pairs])
    return np.cov(of_positives) / of_positives.shape[1] + np.cov(of_negatives) / of_negatives.shape[1]


def covariance_by_patients(labels, scores, patients):
    """Obuchowski (1997), equations for S10, S01 and S11, patient by patient."""
    pairs = [compare_pairs(labels, one) for one in scores.T]
    areas = [one.mean() for one in pairs]
    m, n = pairs[0].shape
    of_positives, of_negatives = patients[labels == 1], patients[labels == 0]
    everyone = sorted(set(patients))
    result = np.zeros((len(pairs), len(pairs)))
    for a in range(len(pairs)):
        for b in range(len(pairs)):
            s10 = s01 = s11 = 0.0
            for patient in everyone:
                x, y = of_positives == patient, of_negatives == patient
                dx = [pairs[k].mean(axis=1)[x].sum() - x.sum() * areas[k] for k in (a, b)]
                dy = [pairs[k].mean(axis=0)[y].sum() - y.sum() * areas[k] for k in (a, b)]
                s10 += dx[0] * dx[1]
                s01 += dy[0] * dy[1]
                s11 += dx[0] * dy[1] + dx[1] * dy[0]
            i10, i01, i = len(set(of_positives)), len(set(of_negatives)), len(everyone)
            s10 *= i10 / ((i10 - 1) * m)
            s01 *= i01 / ((i01 - 1) * n)
            s11 *= i / (i - 1)
            result[a, b] = s10 / m + s01 / n + s11 / (m * n)
    return result


@pytest.fixture
def cases():
    generator = np.random.default_rng(0)
    patients = np.sort(generator.integers(0, 40, 150)).astype(str)
    labels = (generator.random(150) < 0.3).astype(float)
    scores = generator.normal(size=(150, 3)) + labels[:, None] + generator.normal(size=(150, 1))
    return labels, scores.round(1), patients


def test_areas_and_covariance_agree_with_the_quadratic_definitions(cases):
    labels, scores, patients = cases
    areas, once = correlate_areas(labels, scores)
    np.testing.assert_allclose(areas, [roc_auc_score(labels, one) for one in scores.T], rtol=0, atol=1e-12)
    np.testing.assert_allclose(once, covariance_by_components(labels, scores), rtol=0, atol=1e-12)
    _, clustered = correlate_areas(labels, scores, patients)
    np.testing.assert_allclose(clustered, covariance_by_patients(labels, scores, patients), rtol=0, atol=1e-12)
    np.testing.assert_allclose(correlate_areas(labels, scores, np.arange(150))[1], once, rtol=0, atol=1e-15)
    # Copies of an image add nothing where patients are known.
    copies = np.repeat(np.arange(150), 4)
    np.testing.assert_allclose(correlate_areas(labels[copies], scores[copies], copies)[1], once, rtol=0, atol=1e-12)
    assert (np.diag(correlate_areas(labels[copies], scores[copies])[1]) < 0.3 * np.diag(once)).all()


def test_uncertain_and_unstated_labels_are_left_out(cases):
    labels, scores, patients = cases
    masked, kept = labels.copy(), np.arange(150) % 5 != 0
    masked[~kept] = np.where(np.arange(30) % 2, -1, np.nan)
    scores[~kept] = np.nan
    for one in (None, patients):
        expected = correlate_areas(labels[kept], scores[kept], None if one is None else one[kept])
        np.testing.assert_array_equal(correlate_areas(masked, scores, one)[1], expected[1])


def test_a_mean_over_seeds_is_a_contrast(cases):
    labels, scores, patients = cases
    areas, covariance = correlate_areas(labels, scores, patients)
    variance = np.array([0.5, 0.5, -1]) @ covariance @ [0.5, 0.5, -1]
    distance = abs(areas[:2].mean() - areas[2]) / np.sqrt(variance)
    assert contrast_p_value(areas, covariance, (0.5, 0.5, -1.0)) == pytest.approx(2 * norm.sf(distance))
    with pytest.raises(StudyError, match="2 weights for 3 models"):
        contrast_p_value(areas, covariance)


def test_models_that_rank_alike_differ_by_nothing_and_without_variance_nothing_can_be_told(cases):
    labels, scores, patients = cases
    alike = np.column_stack([scores[:, 0], np.exp(scores[:, 0])])
    for one in (None, patients):
        assert contrast_p_value(*correlate_areas(labels, alike, one)) == 1
    perfect = np.array([0.0, 1, 2, 3])
    areas, covariance = correlate_areas(np.array([0.0, 0, 1, 1]), np.column_stack([perfect, -perfect]))
    assert list(areas) == [1, 0]
    assert np.isnan(contrast_p_value(areas, covariance))


def test_one_class_or_one_patient_of_a_class_has_no_covariance():
    scores = np.random.default_rng(0).normal(size=(6, 2))
    one_class = correlate_areas(np.array([1.0, 1, 1, -1, np.nan, 1]), scores)
    assert np.isnan(one_class[0]).all()
    assert np.isnan(contrast_p_value(*one_class))
    areas, covariance = correlate_areas(np.array([1.0, 1, 0, 0, 0, 0]), scores, list("aabcde"))
    assert np.isfinite(areas).all()
    assert np.isnan(covariance).all()


@pytest.mark.parametrize(
    ("labels", "scores", "patients", "sentence"),
    [
        (np.zeros(3), np.zeros(3), None, r"scores \(3,\) \(cases, models\)"),
        (np.zeros(3), np.zeros((4, 2)), None, "labels"),
        (np.zeros(3), np.zeros((3, 2)), ["a", "b"], "2 patients named for 3 cases"),
        (np.array([0.0, 1, 1]), np.array([[0.0], [np.nan], [1]]), None, "some scores are NaN"),
    ],
)
def test_what_does_not_fit_is_one_sentence(labels, scores, patients, sentence):
    with pytest.raises(StudyError, match=sentence):
        correlate_areas(labels, scores, patients)


@pytest.mark.slow
def test_intervals_of_a_difference_cover_the_truth_where_patients_have_several_images():
    # Each patient has one to seven images that share the label and most of what the models see. The AUROCs between
    # images of different patients are then known; the share of pairs within a patient is zero.
    generator = np.random.default_rng(11)
    gaps, between, within, simulations = (1.0, 0.7), 1.0, 0.6, 600
    truth = np.subtract(*(norm.cdf(gap / np.sqrt(2 * (between**2 + within**2))) for gap in gaps))
    covered = dict.fromkeys(("clustered", "naive", "bootstrap"), 0)
    for _ in range(simulations):
        images = generator.integers(1, 8, 120)
        patient = np.repeat(np.arange(120), images)
        sick = np.arange(120) % 3 == 0
        shared = generator.normal(0, between / np.sqrt(2), (120, 1))
        own = shared + generator.normal(0, between / np.sqrt(2), (120, 2)) + np.array(gaps) * sick[:, None]
        labels = sick[patient].astype(float)
        scores = own[patient] + generator.normal(0, within, (len(patient), 2))
        for name, of in (("clustered", patient), ("naive", None)):
            areas, covariance = correlate_areas(labels, scores, of)
            error = np.sqrt([1, -1] @ covariance @ [1, -1])
            covered[name] += abs(areas[0] - areas[1] - truth) <= norm.ppf(0.975) * error
        weights = bootstrap_patients(patient, 400, generator)
        pair = np.column_stack([labels, labels])
        values, replicates = auroc(pair, scores), auroc(pair, scores, weights)
        difference = paired_difference(
            values[None, :1],
            values[None, 1:],
            replicates[None, :, :1],
            replicates[None, :, 1:],
            generator,
            count_scarcer_patients(pair[:, :1], weights),
        )
        covered["bootstrap"] += bool(difference.ci_low[0] <= truth <= difference.ci_high[0])
    share = {name: count / simulations for name, count in covered.items()}
    # 600 simulations tell a share of 0.95 to +-0.018.
    assert 0.93 <= share["clustered"] <= 0.97, share
    assert 0.93 <= share["bootstrap"] <= 0.975, share
    assert share["naive"] < 0.8, share
