"""The posterior of a curve: against plain quadrature, what pooling changes, and coverage."""

import numpy as np
import pytest
from learning_curves import LABELS, TRUE, measure_curve

from chexstudy.label_planning.families import labels_for
from chexstudy.label_planning.observations import LearningCurve, relate_variances
from chexstudy.label_planning.posterior import Posterior, Prior, _infer_group, infer_curves, trace_bands


def population(generator, findings):
    plateau = 0.5 + 0.5 / (1 + np.exp(-generator.normal(0.9, 0.6, findings)))
    gamma = 0.45 * np.exp(0.25 * generator.standard_normal(findings))
    lacking = generator.uniform(0.3, 0.8, findings) * (plateau - 0.5)
    return np.stack([plateau, lacking * 10**gamma, gamma], axis=1)


def integrate_plainly(curve, deviation):
    """Quantiles of alpha from a plain grid over all three parameters, priors fixed, sigma integrated out."""
    alpha = np.linspace(0.5, 1, 202)[1:-1][:, None, None]
    log_gamma = np.linspace(np.log(0.02), np.log(2), 120)[:, None]
    log_short = np.linspace(np.log(0.01), np.log(3), 160)
    logit = np.log((alpha - 0.5) / (1 - alpha))
    beta = (alpha - 0.5) * np.exp(log_short + np.exp(log_gamma) * np.log(10))
    basis = np.exp(-np.exp(log_gamma)[..., None] * np.log(curve.labels))
    weights = curve.draws * curve.labels / 10
    residual = curve.means - alpha[..., None] + beta[..., None] * basis
    within = np.sum(weights * (curve.draws - 1) / curve.draws * np.nan_to_num(curve.variances))
    known = 4 * deviation**2 + within + np.sum(weights * residual**2, axis=-1)
    degrees = 4 + np.sum(curve.draws - 1) + len(curve.labels)
    log_mass = -degrees / 2 * np.log(known)
    log_mass = log_mass - (logit - 1.0) ** 2 / 2 - ((log_gamma - np.log(0.5)) / 0.4) ** 2 / 2
    log_mass = log_mass - ((log_short - np.log(0.4)) / 0.5) ** 2 / 2
    # The prior is of the logit.
    mass = np.exp(log_mass - log_mass.max()) / ((alpha - 0.5) * (1 - alpha))
    running = np.cumsum(mass.sum(axis=(1, 2)))
    return np.interp([0.025, 0.5, 0.975], running / running[-1], alpha.ravel())


FIXED = Prior(
    plateau_means=(1.0,),
    plateau_spreads=(1.0, 1.0001),
    gamma_means=(np.log(0.5),),
    gamma_spreads=(0.4, 0.4001),
    shortfall_means=(np.log(0.4),),
    shortfall_spreads=(0.5, 0.5001),
    references=(10.0,),
    deviations=(0.055,),
    misfits=((0.0, 1.0),),
    delays=((0.0, 1.0),),
)


@pytest.mark.parametrize(("points", "draws"), [(3, 5), (5, 1), (8, 5)])
def test_the_posterior_is_that_of_plain_quadrature(points, draws):
    curve = measure_curve(LABELS[:points], draws, np.random.default_rng(points))
    # The exponent is part of what is compared; with one draw it is that of the prior, 1.
    (posterior,) = _infer_group([curve], np.random.default_rng(0), FIXED, 20_000)
    if draws > 1:
        assert posterior.exponent == pytest.approx(1, abs=0.35)
    expected = integrate_plainly(curve, 0.055)
    found = np.quantile(posterior.plateaus, [0.025, 0.5, 0.975])
    assert found == pytest.approx(expected, abs=0.012)


def test_parameters_keep_their_bounds_and_many_labels_find_them():
    curve = measure_curve(LABELS, 50, np.random.default_rng(0), deviation=0.03)
    (posterior,) = infer_curves([curve], np.random.default_rng(0))
    alpha, beta, gamma, _ = posterior.parameters.T
    for values, low, high in ((alpha, 0.5, 1), (beta, 0, np.inf), (gamma, 0.02, 2)):
        assert ((values >= low) & (values <= high)).all()
    assert np.median(posterior.parameters, axis=0)[:3] == pytest.approx(TRUE, rel=0.12)
    assert np.median(posterior.deviations) == pytest.approx(0.03, rel=0.15)


def test_pooling_narrows_what_few_labels_say():
    generator = np.random.default_rng(3)
    curves = [
        measure_curve(LABELS[:5], 5, generator, truth, str(place))
        for place, truth in enumerate(population(generator, 15))
    ]
    widths = []
    for pool in (False, True):
        ends = [np.quantile(one.plateaus, [0.025, 0.975]) for one in infer_curves(curves, generator, pool)]
        widths.append(np.mean([high - low for low, high in ends]))
    assert widths[1] < 0.85 * widths[0]


def test_alone_a_curve_does_not_hear_the_others():
    generator = np.random.default_rng(4)
    first, second, other = (measure_curve(LABELS[:4], 3, generator, name=name) for name in "abc")
    with_second = infer_curves([first, second], np.random.default_rng(0), pool=False)[0]
    with_other = infer_curves([first, other], np.random.default_rng(0), pool=False)[0]
    assert (with_second.parameters == with_other.parameters).all()
    again = infer_curves([first, second], np.random.default_rng(0), pool=False)[0]
    assert (again.parameters == with_second.parameters).all()
    assert (again.deviations == with_second.deviations).all()
    pooled = [infer_curves([first, one], np.random.default_rng(0))[0] for one in (second, other)]
    assert (pooled[0].parameters != pooled[1].parameters).any()


def test_a_single_draw_at_each_number_of_labels_is_enough_to_start():
    (posterior,) = infer_curves([measure_curve(LABELS[:3], 1, np.random.default_rng(0))], np.random.default_rng(0))
    low, high = np.quantile(posterior.plateaus, [0.025, 0.975])
    assert high - low > 0.1
    assert low < 0.86 < high


def test_foreseen_means_vary_more_than_the_curve():
    (posterior,) = infer_curves([measure_curve(LABELS[:5], 5, np.random.default_rng(0))], np.random.default_rng(0))
    one, many = (np.std(posterior.foresee(10, draws, np.random.default_rng(1))) for draws in (1, 10_000))
    assert one > many
    assert many == pytest.approx(np.std(posterior.predict(10)[:, 0]), rel=0.25)
    assert np.sqrt(one**2 - many**2) == pytest.approx(np.median(posterior.deviations), rel=0.3)


def test_a_flat_start_is_no_plateau_at_chance():
    """The first 50 labels of a rare finding say nothing yet; a law without delay believes what it sees."""
    values = np.full((4, 20), 0.5) + 0.02 * np.random.default_rng(0).standard_normal((4, 20))
    flat = LearningCurve("curated", "Hernia", np.array([10, 20, 30, 50.0]), values)
    late, at_once = (
        np.quantile(_infer_group([flat], np.random.default_rng(0), prior, 4000)[0].predict(2000), 0.975)
        for prior in (Prior(), Prior(delays=((0.0, 1.0),)))
    )
    assert late > at_once + 0.05
    assert late > 0.7


def test_spreads_that_follow_no_law_are_believed_where_draws_are_many():
    spread = np.array([0.2, 0.2, 0.2, 0.01, 0.01])
    noise = np.random.default_rng(0).standard_normal((5, 40))
    many = LearningCurve("e", "f", LABELS[:5], 0.7 + spread[:, None] * noise)
    found = np.sqrt(relate_variances(many, 1.0, 10.0))
    assert found[2] / found[3] == pytest.approx(20, rel=0.5)
    single = LearningCurve("e", "f", LABELS[:5], many.values[:, :1])
    assert relate_variances(single, 1.0, 10.0) == pytest.approx(10 / LABELS[:5])


def cover(repeats, findings, labels, draws, pool):
    """Share of plateaus and of labels needed within their intervals."""
    plateaus, needed = [], []
    for repeat in range(repeats):
        generator = np.random.default_rng([repeat, draws, len(labels)])
        truths = population(generator, findings)
        curves = [measure_curve(labels, draws, generator, truth, str(place)) for place, truth in enumerate(truths)]
        for truth, posterior in zip(truths, infer_curves(curves, generator, pool), strict=True):
            low, high = np.quantile(posterior.plateaus, [0.025, 0.975])
            plateaus.append(low <= truth[0] <= high)
            target = truth[0] - 0.05
            low, high = np.quantile(labels_for(target, posterior.parameters), [0.025, 0.975], method="inverted_cdf")
            needed.append(low <= labels_for(target, np.append(truth, 0.0)) <= high)
    return np.mean(plateaus), np.mean(needed)


def test_intervals_cover_in_a_small_simulation():
    """Two populations of 12: coverage of 0.8 or less would be far from chance around 0.95."""
    plateau, needed = cover(2, 12, LABELS[:5], 5, pool=True)
    assert plateau > 0.8
    assert needed > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize(("points", "draws"), [(3, 5), (6, 1), (8, 20)])
def test_intervals_cover_at_the_stated_rate(points, draws, pool):
    """40 populations pooled, or 40 x 3 curves alone; curves of a population err together, hence the allowance."""
    plateau, needed = cover(40, 12 if pool else 3, LABELS[:points], draws, pool)
    assert plateau > 0.9
    assert needed > 0.9


def test_bands_follow_the_law_and_reach_beyond_what_was_measured():
    curve = LearningCurve("full", "Mass", np.array([10.0, 100.0, 1000.0]), np.full((3, 2), 0.7), "t/test")
    parameters = np.column_stack([np.linspace(0.8, 0.9, 101), np.full(101, 0.5), np.full(101, 0.5), np.zeros(101)])
    bands = trace_bands([Posterior(curve, parameters, np.full(101, 0.05), np.zeros(101), 1.0)])
    assert (bands.labels.min(), bands.labels.max()) == pytest.approx((10, 2000))
    assert bands.value.to_numpy() == pytest.approx(0.85 - 0.5 / np.sqrt(bands.labels))
    assert (bands.high - bands.low).to_numpy() == pytest.approx(0.095)
