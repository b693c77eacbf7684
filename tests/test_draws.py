"Scores of draws: fair in their number, proper, and refused where they say nothing."

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from xmodal.cli import main
from xmodal.core import InputError
from xmodal.evaluation.cohort import evaluate_mask_cases, match
from xmodal.evaluation.draws import (
    compare_draws,
    coverage,
    draw_summary,
    DrawOptions,
    energy_score,
    evaluate_draws,
    fair_crps,
    lines_on_draws,
    measure_draws,
    rank_histogram,
    ranks_of,
    score_draws,
    skill_over_spread,
    spectrum_error,
)
from xmodal.train import Job, plan

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


# --- test sets, people, files

PEOPLE = {'a': 0.5, 'b': 1, 'c': 2}  # how uncertain each one's images are


def cases(told, number=6, order=1):
    "Two images of each person; told: person's uncertainty -> spread of the draws."
    for i, (who, s) in enumerate(PEOPLE.items()):
        for j in (0, 32):
            at = (slice(32 * i, 32 * i + 32), slice(j, j + 32))
            yield told(s) * DRAWS[:number, *at][::order], s * TRUTH[at], who


def test_all_draws_the_truth():
    found = score_draws([TRUTH] * 4, TRUTH, (-3, 3))
    assert found['crps'] == found['spectrum'] == 0 and np.isinf(found['psnr_mean'])
    assert np.isnan(found['skill_over_spread'])


def test_the_order_of_draws_says_nothing():
    one, other = (measure_draws(cases(lambda s: s, order=k), (-3, 3)) for k in (1, -1))
    numbers = [k for k in one if k not in ('subject', 'image')]
    assert np.allclose(one[numbers], other[numbers], rtol=1e-9)


def test_a_person_has_one_ratio_of_skill_and_spread():
    "Right for each where each one's uncertainty is known; by hand where one number is for all."
    knows = measure_draws(cases(lambda s: s), (-3, 3)).groupby('subject').skill_over_spread
    assert (knows.nunique() == 1).all() and knows.first().to_numpy() == pytest.approx(1, abs=0.1)
    guess = measure_draws(cases(lambda s: 1), (-3, 3)).groupby('subject').skill_over_spread.first()
    assert guess.to_numpy() == pytest.approx([0.6, 1, 1.87], abs=0.12)


def test_one_answer_has_its_error_as_crps_and_no_ranks():
    rows = measure_draws(cases(lambda s: 0, number=1), (-3, 3))
    error = np.mean([np.abs(t).mean() / 6 for _, t, _ in cases(lambda s: 0)])
    assert rows.crps.mean() == pytest.approx(error) and ranks_of(rows) is None
    said = lines_on_draws(dict(regression=rows), 8)
    assert any('regression: one answer' in line for line in said)
    assert 'LPIPS is not measured' in said[-1]


def test_methods_are_compared_by_people():
    rows = {
        n: measure_draws(cases(lambda s: s, k), (-3, 3)) for n, k in dict(draws=6, one=1).items()
    }
    table = pd.concat([v.assign(method=n) for n, v in rows.items()])
    found = compare_draws(table, 'one')
    assert list(found.measure) == ['crps', 'psnr_mean', 'ssim_mean'] and set(found.n) == {3}
    assert found['diff'][0] < 0 < found['diff'][1]
    assert draw_summary(rows['draws'])['crps']['n_subjects'] == 3


def test_protocols_of_draws():
    "In Hounsfield units the CRPS is in them, as MAE is; what stretches every draw is refused."
    in_hu = score_draws(
        DRAWS[:3], TRUTH, (-3, 3), TRUTH < 9, DrawOptions('synthrad', (-1500, 1500))
    )
    assert in_hu['crps_hu'] == pytest.approx(3000 * fair_crps(DRAWS[:3], TRUTH, (-3, 3)))
    with pytest.raises(InputError, match='fixed, cdtsde or synthrad'):
        measure_draws(cases(lambda s: s), (-3, 3), DrawOptions('syndiff'))
    with pytest.raises(InputError, match='nowhere.pth'):
        measure_draws(cases(lambda s: s), (-3, 3), DrawOptions(weights='nowhere.pth'))


@pytest.fixture
def drawn_files(tmp_path):
    "Three people, three draws of each: in one folder by names, and in folders of their own."
    rng = np.random.default_rng(1)
    for i in range(3):
        truth = 500 + 100 * rng.standard_normal((16, 18, 3))
        files = {f'truth/sub-0{i}_T2w': truth}
        for k in (1, 2, 3):
            draw = 500 + 100 * rng.standard_normal(truth.shape)
            draw[: 2 * (k == 2)] = np.nan
            files |= {f'names/sub-0{i}_draw-{k}_T2w': draw, f'folders/draw-{k}/sub-0{i}_T2w': draw}
        for name, v in files.items():
            path = tmp_path / f'{name}.nii.gz'
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(v.astype(np.float32), np.eye(4)), path)
    return tmp_path


def test_draws_as_files(drawn_files, capsys):
    "By names and by folders the same, without what one of the draws has not measured."
    scales = dict(window='0:1000', progress=False)
    both = [match(drawn_files / d, drawn_files / 'truth') for d in ('names', 'folders')]
    assert [len(c.draws) for c in both[0]] == [3, 3, 3]
    one, other = (evaluate_draws(c, **scales) for c in both)
    pd.testing.assert_frame_equal(one, other)
    assert one.skill_over_spread.mean() == pytest.approx(1, abs=0.1)
    values = [[np.asarray(nib.load(p).dataobj)[2:] for p in c.draws] for c in both[0]]
    truths = [np.asarray(nib.load(c.truth).dataobj)[2:] for c in both[0]]
    by_hand = [fair_crps(v, t, 1000) for v, t in zip(values, truths)]
    assert one.groupby('subject').crps.mean().to_numpy() == pytest.approx(by_hand, rel=1e-5)
    words = [drawn_files / 'names', drawn_files / 'truth', '--window', '0:1000']
    code = main(['evaluate', *map(str, words), '--out', str(drawn_files / 'run')])
    assert code == 0 and 'mean of 3 draws' in capsys.readouterr().out
    kept = json.loads((drawn_files / 'run/metrics.json').read_text())
    assert kept['draws']['number'] == 3 and sum(kept['draws']['ranks']['names']) == pytest.approx(1)
    assert kept['scores']['names']['crps']['mean'] == pytest.approx(np.mean(by_hand), rel=1e-5)
    one, mean = (kept['scores']['names'][k]['mean'] for k in ('psnr', 'psnr_mean'))
    assert mean == pytest.approx(one, abs=1e-5)


def test_draws_as_files_that_do_not_fit(drawn_files):
    with pytest.raises(InputError, match='several draws of labels or masks'):
        evaluate_mask_cases(match(drawn_files / 'names', drawn_files / 'truth'), progress=False)
    (drawn_files / 'names/sub-01_draw-3_T2w.nii.gz').unlink()
    with pytest.raises(InputError, match='sub-01_draw-1.*2 draws, and 3 of another'):
        match(drawn_files / 'names', drawn_files / 'truth')
    one = match(drawn_files / 'folders/draw-1', drawn_files / 'truth')
    assert not one[0].draws  # a single draw is a translation like any other


def test_lpips_and_draws_of_a_job_are_checked_first():
    for words, says in (
        (dict(lpips='alex.pth'), 'give draws'),
        (dict(lpips='alex.pth', draws=2, size=32), '64 x 64'),
        (dict(lpips='alex.pth', draws=2), 'weights not found at alex.pth'),
        (dict(draws=0), 'draws must be 1 or more'),
    ):
        with pytest.raises(InputError, match=says):
            plan(Job(name='test-never-made', **words))
