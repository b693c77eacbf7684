"Scores of draws: fair in their number, proper, and refused where they say nothing."

import numpy as np
import pytest
from xmodal.core import InputError
from xmodal.evaluation.draws import (
    coverage,
    energy_score,
    fair_crps,
    rank_histogram,
    score_draws,
    skill_over_spread,
    spectrum_error,
)

RNG = np.random.default_rng(0)
TRUTH, DRAWS = RNG.normal(size=(160, 160)), RNG.normal(size=(19, 160, 160))


@pytest.mark.parametrize('score', [fair_crps, energy_score])
def test_a_score_is_fair_and_proper(score):
    "The same for few draws as for many; worse for draws that are too alike or too wide."
    few, many = score(DRAWS[:3], TRUTH, 1), score(DRAWS, TRUTH, 1)
    assert abs(few - many) < 0.01 * many
    assert min(score(f * DRAWS, TRUTH, 1) for f in (0.6, 1.6)) > 1.02 * many
    assert score(DRAWS, TRUTH, 4) == pytest.approx(many / 4)


def test_honest_draws_are_found_honest():
    assert skill_over_spread(DRAWS[:4], TRUTH) == pytest.approx(1, abs=0.02)
    assert coverage(DRAWS, TRUTH, 0.9) == pytest.approx(0.9, abs=0.01)
    assert coverage(DRAWS[:8], TRUTH, 0.5) == pytest.approx(0.5, abs=0.01)
    assert rank_histogram(DRAWS[:4], TRUTH) == pytest.approx(np.full(5, 0.2), abs=0.01)
    assert spectrum_error(DRAWS[0], TRUTH, signed=True) == pytest.approx(0, abs=0.05)


def test_a_regression_has_the_columns_that_make_sense():
    found = score_draws([0 * TRUTH], TRUTH, (-3, 3))
    assert found['crps'] == pytest.approx(np.abs(TRUTH).mean() / 6)
    assert found['psnr_draw'] == found['psnr_mean']
    assert not [k for k in found if k.startswith(('coverage', 'skill'))]


@pytest.mark.parametrize(
    'score, says',
    [
        (lambda: coverage(DRAWS[:8], TRUTH, 0.9), '19 or more'),
        (lambda: skill_over_spread(DRAWS[:1], TRUTH), '2 or more'),
        (lambda: fair_crps([TRUTH, TRUTH[:5]], TRUTH, 1), 'shape'),
        (lambda: spectrum_error(TRUTH, TRUTH, mask=TRUTH > 0), 'no mask'),
        (lambda: energy_score(DRAWS, TRUTH, 1, TRUTH > 0), '8 x 8'),
    ],
)
def test_what_says_nothing_is_refused(score, says):
    with pytest.raises(InputError, match=says):
        score()
