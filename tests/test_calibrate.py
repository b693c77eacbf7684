"""Intervals from the command line to the files: they hold for people nobody has seen, are stored with
the model, and are refused where nothing is known.
"""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from small_model import TINY, xmodal

from xmodal.calibrate import (
    answer_and_truth,
    calibrate,
    CalibrateOptions,
    guarantee,
    members_for,
    people_asked,
    store_intervals,
    voxels_that_count,
)
from xmodal.core import InputError
from xmodal.data.layouts import simulated_root
from xmodal.engine import records_of
from xmodal.evaluation.calibration import width_of
from xmodal.folders import trained_on
from xmodal.job import FromData
from xmodal.nets.build import build
from xmodal.training.model_folder import StoredIntervals, add_grid, add_intervals
from xmodal.training.model_folder import load_config, save_model
from xmodal.translate import SampleOptions, Translator, asked_otherwise

DATA = dict(
    kind='volume',
    dataset='bids',
    source='T1w',
    target='T2w',
    size=16,
    spacing=8.0,
    source_window='0:3',
    target_window=[0.0, 3.0],
    target_window_rule='0:3',
    channels=[1, 1],
    steps=1,
    target_dtype='float32',
    target_reach=[0.0, 3.0],
)


def head(rng):
    "A source and a target that differs by a size of this person's own, the more the brighter."
    source = np.zeros((16, 16, 3), np.float32)
    source[3:-3, 3:-3] = 0.8 + rng.random((10, 10, 3))
    off = np.exp(0.5 * rng.normal()) * 0.1 * rng.normal(size=source.shape)
    return source, np.where(source > 0, source + off, 0).astype(np.float32)


def people(root, n, seed=0) -> Path:
    "A BIDS data set of so many people of a few voxels."
    rng = np.random.default_rng(seed)
    for i in range(n):
        anat = root / f'sub-{i + 1:03d}/anat'
        anat.mkdir(parents=True)
        for name, grey in zip(('T1w', 'T2w'), head(rng)):
            scan = nib.Nifti1Image(grey, np.diag([8.0, 8, 8, 1]))
            scan.header.set_sform(scan.affine, 1)
            nib.save(scan, anat / f'sub-{i + 1:03d}_{name}.nii.gz')
    return root


def named(*numbers):
    return [f'sub-{i:03d}' for i in numbers]


def model(folder, split, seed=0, method='cdtsde', **data):
    "A model folder with random weights; who trained and validated."
    torch.manual_seed(seed)
    training, own = dict(subjects=split), dict(TINY, method=method)
    save_model(folder, build(**own), own, {**DATA, **data}, training, '# A\n\n## Limits\nNone.\n')
    return folder


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "70 people; three trained, 19 validated."
    root = tmp_path_factory.mktemp('study')
    people(root / 'bids', 70)
    split = dict(train=named(1, 2, 3), val=named(*range(4, 23)), test=[])
    model(root / 'model', split)
    done = xmodal('calibrate', root / 'model', '--root', root / 'bids', '--samples', 3)
    assert done.returncode == 0, done.stderr
    return root, done.stdout


def request(root):
    return FromData(dataset='bids', root=str(root / 'bids'), source='T1w', target='T2w')


def test_the_table_and_what_is_stored(study):
    root, said = study
    assert 'calibrated with 19 people, 3 draws each' in said and 'Nothing is promised' in said
    assert 'times the spread of the draws' in said and 'of the worst tenth' in said
    found = Translator.from_pretrained(root / 'model', 'cpu').data.intervals
    assert (found.people, found.samples, found.steps) == (19, 3, 1)
    assert list(found.factors) == ['0.5', '0.8', '0.9', '0.95'] and '0.95' not in found.held
    for k in found.factors:
        assert f'{float(k):>6g}{19:>8}{found.factors[k]:>9.3f}' in said
    card = (root / 'model' / 'README.md').read_text()
    assert card.index('## Intervals') < card.index('## Limits') and found.guarantee in card


def test_they_hold_for_people_nobody_has_seen(study):
    root, _ = study
    tr, level = Translator.from_pretrained(root / 'model', 'cpu'), 0.8
    found, how, held = tr.data.intervals, SampleOptions(samples=3), []
    for r in [r for r in records_of(request(root), ['T2w']) if r.subject > 'sub-022']:
        mean, std, truth = answer_and_truth(tr, r, how)
        off = np.abs(truth - mean) <= found.factors['0.8'] * width_of(std, found.floor)
        held.append(off[:, voxels_that_count(truth, 'body')].mean())
    error = np.std(held) / np.sqrt(len(held))
    assert len(held) == 48 and np.mean(held) > level - 3 * error
    # the people left out in turn say the same
    assert abs(np.mean(held) - found.held['0.8']) < 4 * np.std(held) / np.sqrt(19)


def test_files_hold_the_truth_as_often(study, tmp_path):
    "From the files that the command writes, on the grid of the scan."
    root, _ = study
    names = named(*range(40, 50))
    words = ['--bids', '--interval', 0.8, '--risk', '--participant-label', *names]
    done = xmodal('translate', root / 'model', root / 'bids', tmp_path / 'out', *words)
    assert done.returncode == 0, done.stderr
    held = []
    for name in names:
        at = tmp_path / f'out/{name}/anat/{name}_desc-synth%s_T2w.nii.gz'
        low, mean, high, risk, _ = (
            nib.load(str(at) % k).get_fdata() for k in ('Lower', '', 'Upper', 'Risk', 'Std')
        )
        truth = nib.load(root / f'bids/{name}/anat/{name}_T2w.nii.gz').get_fdata()
        assert (low <= high).all() and (risk > 0).all() and low.min() >= 0
        held.append(((low <= truth) & (truth <= high))[truth > 0.3].mean())
        side = json.loads(
            (Path(str(at) % 'Lower').parent / f'{name}_desc-synthLower_T2w.json').read_text()
        )
        assert (side['Level'], side['People']) == (0.8, 19) and 'On average' in side['Guarantee']
    assert np.mean(held) > 0.8 - 3 * np.std(held) / np.sqrt(10)
    note = json.loads((tmp_path / f'out/{name}/anat/{name}_desc-synth_T2w.json').read_text())
    assert note['xmodal']['samples'] == 3 and note['xmodal']['expected']['Draws'] == 3


def test_without_the_margin_few_people_carry_a_level_and_it_is_narrower(study):
    "With it three people are refused; without it nothing is proven, and the words say so."
    root, _ = study
    tr = Translator.from_pretrained(root / 'model', 'cpu')
    asked = dict(people=tuple(named(4, 5, 6)), samples=3, levels=(0.9,))
    with pytest.raises(InputError, match='3 people cannot carry'):
        calibrate(tr, request(root), CalibrateOptions(**asked))
    fit, stored = calibrate(tr, request(root), CalibrateOptions(**asked, margin=False))
    assert list(fit.factors) == [0.9] and 'not proven' in stored.guarantee
    some = dict(asked, people=tuple(named(*range(4, 16))))
    proven, _ = calibrate(tr, request(root), CalibrateOptions(**some))
    plain, _ = calibrate(tr, request(root), CalibrateOptions(**some, margin=False))
    assert plain.widths[0.9] < proven.widths[0.9]


def test_another_way_of_asking_is_said(study, tmp_path):
    root, _ = study
    scan, out = root / 'bids/sub-060/anat/sub-060_T1w.nii.gz', tmp_path / 'a.nii.gz'
    words = '--risk', '--steps', 2, '--samples', 2
    done = xmodal('translate', root / 'model', scan, out, *words)
    assert done.returncode == 0 and 'steps 2 (calibrated: 1)' in done.stderr
    assert 'samples 2 (calibrated: 3)' in done.stderr and 'overlap' not in done.stderr
    assert (tmp_path / 'a_risk.nii.gz').exists() and not (tmp_path / 'a_lower.nii.gz').exists()
    assert json.loads((tmp_path / 'a.json').read_text())['xmodal']['expected']['Guarantee'] == ''


def test_what_is_not_known_is_refused(study, tmp_path):
    root, _ = study
    scan, out = root / 'bids/sub-060/anat/sub-060_T1w.nii.gz', tmp_path / 'a.nii.gz'
    done = xmodal('translate', root / 'model', scan, out, '--interval', 0.99)
    assert done.returncode == 1 and '0.5, 0.8, 0.9, 0.95' in done.stderr
    fresh = model(tmp_path / 'fresh', dict(train=named(1, 2, 3), val=[], test=[]))
    done = xmodal('translate', fresh, scan, out, '--interval', 0.9)
    assert done.returncode == 1 and f'xmodal calibrate {fresh}' in done.stderr
    assert not out.exists()
    for words, said in (
        (['--people', 'sub-002,sub-005'], 'sub-002: in the training'),
        ([], '--people'),
        (['--people', 'sub-005', '--levels', '0.9'], '9 for 0.9'),
        (['--people', 'sub-999'], 'sub-999: not in the data set'),
        (['--people', 'sub-005', '--levels', '1.5'], 'between 0 and 1'),
        (['--people', 'sub-005', '--levels', ','], 'levels'),
    ):
        done = xmodal('calibrate', fresh, '--root', root / 'bids', *words)
        assert done.returncode == 1 and said in done.stderr, done.stderr
        assert done.stderr.count('\n') == 1
    assert 'intervals' not in load_config(fresh)['data']


def test_an_old_folder_opens(tmp_path):
    old = Translator.from_pretrained(Path(__file__).parent / 'goldens' / 'model', 'cpu')
    assert old.data.intervals is None
    with pytest.raises(InputError, match='xmodal calibrate'):
        old.maps(np.zeros((1, 16, 16), np.float32), risk=True)


def test_models_in_folds(study, tmp_path):
    "Everybody is answered by the model that has not seen them; all models are told."
    root, _ = study
    a, b = named(*range(1, 6)), named(*range(6, 11))
    for k, (train, val) in enumerate(((a, b), (b, a))):
        model(tmp_path / f'folds/fold{k}', dict(train=train, val=val, test=[]), k, 'bbdm')
    tr = Translator.from_pretrained(tmp_path / 'folds', 'cpu', average='steps')
    assert people_asked(tr, ()) == b + a
    assert (members_for(tr, a[0]), members_for(tr, b[0])) == ((1,), (0,))
    fit, found = calibrate(tr, request(root), CalibrateOptions(samples=2))
    assert found.people == 10 and 'had not seen them' in found.guarantee
    assert len(store_intervals(tr, found)) == 2
    again = Translator.from_pretrained(tmp_path / 'folds', 'cpu', average='steps')
    assert again.data.intervals == found
    again.members[0].data = replace(again.members[0].data, intervals=None)
    from xmodal.translate import pooled

    assert pooled([m.data for m in again.members]).intervals is None
    with pytest.raises(InputError, match='sub-001, sub-002'):
        people_asked(tr.members[0], named(1, 2, 30))


def test_a_model_of_all_planes(study, tmp_path):
    root, _ = study
    folder = model(tmp_path / 'all', dict(train=[], val=named(1, 2), test=[]), plane='all')
    tr = Translator.from_pretrained(folder, 'cpu')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        fit, found = calibrate(tr, request(root), CalibrateOptions(samples=2, levels=(0.5,)))
    assert (found.people, found.samples) == (2, 2)
    assert fit.coverage[0.5].shape == (2,)


@pytest.fixture
def pictures(tmp_path):
    "Pictures of twelve scenes, two of each, and a model of patches."
    rng = np.random.default_rng(0)
    for side in 'ab':
        (tmp_path / 'data' / side).mkdir(parents=True)
    for i in range(12):
        for k in range(2):
            grey = (rng.random((20, 24)) * 255).astype(np.uint8)
            for side in 'ab':
                Image.fromarray(grey).save(tmp_path / f'data/{side}/s{i:02d}_{k}.png')
    data = dict(kind='image', dataset='folder', source='a', target='b', spacing=None)
    data |= dict(source_window='dtype', target_window=[0.0, 255.0], target_window_rule='dtype')
    data |= dict(target_dtype='uint8', target_reach=[0.0, 255.0], fit='patch', size=16)
    split = dict(train=[], val=[f's{i:02d}' for i in range(12)], test=[])
    return tmp_path, model(tmp_path / 'model', split, **data)


def test_pictures(pictures):
    root, folder = pictures
    words = '--root', root / 'data', '--group', '^(s[0-9]+)_', '--samples', 2
    done = xmodal('calibrate', folder, *words)
    assert done.returncode == 0, done.stderr
    assert 'calibrated with 12 people' in done.stdout and ', all;' in done.stdout
    scene = root / 'data/a/s00_0.png'
    done = xmodal('translate', folder, scene, root / 'out.png', '--interval', 0.9, '--risk')
    assert done.returncode == 0, done.stderr
    maps = {k: tifffile.imread(root / f'out_{k}.tif') for k in ('lower', 'upper', 'risk')}
    assert all(v.shape == (20, 24) and v.dtype == np.float32 for v in maps.values())
    assert maps['lower'].min() >= 0 and maps['upper'].max() <= 255


def test_other_planes_and_another_overlap_are_said(study):
    root, _ = study
    tr = Translator.from_pretrained(root / 'model', 'cpu')
    said = asked_otherwise(tr, SampleOptions(samples=3, planes='axial', overlap=0.5))
    assert said == ["planes 'axial' (calibrated: '')", 'overlap 0.5 (calibrated: 0.25)']


def test_a_grid_fitted_later_and_another_precision_are_said(study, tmp_path):
    "The number of steps is the same, and yet they are others."
    root, _ = study
    folder = shutil.copytree(root / 'model', tmp_path / 'model')
    tr = Translator.from_pretrained(folder, 'cpu')
    three = replace(tr.data.intervals, steps=3, times=(1.0, 0.6, 0.3, 0.0))
    add_intervals(folder, three)
    add_grid(folder, [1, 0.6, 0.3, 0], 'bound', three.tau)
    asked = SampleOptions(samples=3, steps=3)
    assert asked_otherwise(Translator.from_pretrained(folder, 'cpu'), asked) == []
    add_grid(folder, [1, 0.5, 0.3, 0], 'bound', three.tau)
    said = ['other times of the steps, by a grid that was fitted later']
    assert asked_otherwise(Translator.from_pretrained(folder, 'cpu'), asked) == said
    coarse = Translator.from_pretrained(root / 'model', 'cpu', precision='bf16')
    said = ["precision 'bf16' (calibrated: 'no')"]
    assert asked_otherwise(coarse, SampleOptions(samples=3)) == said


def test_a_truth_is_moved_as_the_pairs_of_the_training_were(tmp_path):
    "After a head has moved by 9 mm, its truth is found where the source has it, if so learned."
    root = simulated_root('bids', n=1, voxel=4.0)
    (source,) = Path(root).glob('sub-001/anat/*_T1w.nii.gz')
    scan = nib.load(str(source).replace('T1w', 'T2w'))
    lies = scan.affine.copy()
    lies[:3, 3] += [6, -6, 3]
    nib.save(nib.Nifti1Image(scan.get_fdata(dtype=np.float32), lies), tmp_path / 'moved.nii.gz')
    own = dict(size=32, spacing=6.0, source_window='percentile', target_window_rule='percentile')
    split, truths = dict(train=[], val=['sub-001'], test=[]), {}
    for name, target, registered in (
        ('given', scan.get_filename(), None),
        ('moved', tmp_path / 'moved.nii.gz', None),
        ('registered', tmp_path / 'moved.nii.gz', True),
    ):
        folder = model(tmp_path / name, split, **own, **dict(registered=registered))
        tr = Translator.from_pretrained(folder, 'cpu')
        record = SimpleNamespace(source=source, target=target, more_sources=(), meta={})
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            truths[name] = np.nan_to_num(answer_and_truth(tr, record, SampleOptions())[2], nan=-1)
    off = {k: np.abs(v - truths['given']).mean() for k, v in truths.items()}
    assert off['registered'] < 0.25 * off['moved']


def test_where_the_source_was_not_measured_nothing_counts(pictures):
    "As in a training: an answer about nothing has no error."
    root, folder = pictures
    config = json.loads((folder / 'config.json').read_text())
    config['data']['source_window'] = '0:1'
    (folder / 'config.json').write_text(json.dumps(config))
    tr = Translator.from_pretrained(folder, 'cpu')
    record = SimpleNamespace(
        source=root / 'data/a/s00_0.tif', target=root / 'data/b/s00_0.png', more_sources=(), meta={}
    )
    grey = np.asarray(Image.open(root / 'data/a/s00_0.png')).astype(np.float32) / 255
    grey[:, :12] = np.nan
    tifffile.imwrite(record.source, grey)
    truth = answer_and_truth(tr, record, SampleOptions(samples=2))[2]
    assert np.isnan(truth[0, :, :12]).all() and np.isfinite(truth[0, :, 12:]).all()


def test_whom_its_teacher_has_learned_from_is_no_stranger_to_a_model(tmp_path):
    split = dict(train=named(1), val=named(2), test=[], before=named(3))
    tr = Translator.from_pretrained(model(tmp_path / 'm', split), 'cpu')
    assert [members_for(tr, v) for v in named(1, 2, 3)] == [(), (0,), ()]
    with pytest.raises(InputError, match='sub-003'):
        people_asked(tr, named(2, 3))
    assert trained_on(tr) == set(named(1, 3))


def test_a_scene_has_them_strip_by_strip(tmp_path, monkeypatch):
    "As the same picture in memory."
    rasterio = pytest.importorskip('rasterio')
    from test_scenes import both, geotiff, values
    from test_scenes import model as model_of_scenes

    assert rasterio
    path, tr = geotiff(tmp_path / 's.tif', values().astype(np.uint16)), model_of_scenes()
    factors = dict(factors={'0.9': 1.5}, floor=0.05, kappa=0.8, people=9, samples=2, steps=3)
    tr.data = replace(tr.data, intervals=StoredIntervals(**factors))
    rows, whole = both(tr, path, monkeypatch, interval=0.9, risk=True)
    assert isinstance(rows['lower'], np.memmap) and set(rows) == set(whole)
    for k in ('lower', 'upper', 'risk', 'std'):
        np.testing.assert_allclose(np.asarray(rows[k]), whole[k], atol=0.5)


@pytest.mark.parametrize('rule, says', [('hu', 'one intensity window (hu)'), ('percentile', 'own')])
def test_a_promise_names_the_window_that_holds(rule, says):
    asked = SimpleNamespace(data=SimpleNamespace(target_window_rule=rule), members=(), config={})
    assert says in guarantee(asked, 9, 'body')


def test_the_place_of_the_training_need_not_be_typed_again(study, tmp_path):
    root, _ = study
    run = tmp_path / 'runs' / 'once'
    fresh = model(run / 'model', dict(train=named(1, 2, 3), val=named(*range(4, 23)), test=[]))
    noted = dict(dataset='bids', root=str(root / 'bids'), group='', allow_unpaired=False)
    (run / 'metrics.json').write_text(json.dumps(dict(parameters=noted)))
    done = xmodal('calibrate', fresh, '--samples', 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(root / 'bids')) == 1 and '--root' in done.stdout
    (run / 'metrics.json').write_text(json.dumps(dict(parameters=noted | dict(root='/gone'))))
    done = xmodal('calibrate', fresh, '--samples', 1)
    assert done.returncode == 1 and '--root' in done.stderr
