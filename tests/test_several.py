"""Several models as one translator, looks in mirrors, and a training in folds."""

import json
import shutil
import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from small_model import IMAGE, TINY, VOLUME, trained_by_command, xmodal
from xmodal.core import InputError
from xmodal.folders import translate_paths
from xmodal.nets.build import build
from xmodal.training.model_folder import load_config, save_model
from xmodal.translate import Translator, averaging, mean_values, pooled, spread_of_all

METHOD = dict(TINY, method='bbdm')


def stored(folder, seed, people=(), model=METHOD, **data):
    "A model with random weights in a folder."
    torch.manual_seed(seed)
    den = build(**model)
    training = dict(subjects=dict(train=list(people), val=[], test=[]))
    save_model(folder, den, model, {**VOLUME, **data}, training, '')
    return folder


def head(path, seed=0, shape=(20, 24, 6)):
    values = np.random.default_rng(seed).uniform(0, 900, shape).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([3.0, 3, 3, 1])), path)
    return path


def opened(folder, **how):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return Translator.from_pretrained(folder, 'cpu', **how)


def answer(tr, path, **how):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return np.asarray(tr.translate(path, **how).dataobj)


@pytest.fixture(scope='module')
def three(tmp_path_factory):
    root = tmp_path_factory.mktemp('several')
    for k, window in enumerate(([0.0, 500.0], [0.0, 600.0], [10.0, 400.0])):
        stored(root / f'm/fold{k}', k, target_window=window)
    return root / 'm'


def test_a_folder_of_several_is_averaged_at_every_step(three, tmp_path):
    source, tr = head(tmp_path / 'a_T1w.nii.gz'), opened(three)
    assert (len(tr.members), tr.average) == (3, 'steps')
    assert tr.data.target_window == pytest.approx((10 / 3, 500.0))
    got = answer(tr, source, steps=3)
    one = [answer(m, source, steps=3) for m in tr.members]
    assert all(np.abs(got - v).max() > 1 for v in one)
    # the same models by name, and the same one alone
    by_name = opened(','.join(str(three / f'fold{k}') for k in range(3)))
    assert np.array_equal(answer(by_name, source, steps=3), got)
    alone = averaging([tr.members[0]])
    assert alone is tr.members[0]


def test_one_call_of_one_scale_is_the_mean_of_the_answers(tmp_path):
    one_call = dict(TINY, method='regression')
    for k in range(3):
        stored(tmp_path / f'm/{k}', k, model=one_call, target_window_rule='0:500')
    source = head(tmp_path / 'a_T1w.nii.gz')
    both = [answer(opened(tmp_path / 'm', average=v), source) for v in ('steps', 'results')]
    assert np.abs(both[0] - both[1]).max() < 0.6  # of 500; the limits are applied once or thrice


def test_what_differs_is_named_and_results_are_averaged(three, tmp_path):
    other = stored(tmp_path / 'other', 5, spacing=4.0, size=48)
    names = f'{three / "fold0"},{other}'
    with pytest.raises(InputError, match='differ in size .32, 48.*average results'):
        opened(names, average='steps')
    with pytest.warns(UserWarning, match='differ in size.*the results are averaged'):
        tr = Translator.from_pretrained(names, 'cpu')
    source = head(tmp_path / 'a_T1w.nii.gz')
    got, one = answer(tr, source, steps=2), [answer(m, source, steps=2) for m in tr.members]
    assert np.allclose(got, (one[0].astype(float) + one[1]) / 2, atol=1e-3)
    # models of another task are no company
    flair = stored(tmp_path / 'flair', 5, target='FLAIR')
    with pytest.raises(InputError, match='differ in target .T2w, FLAIR.*same task'):
        opened(f'{three / "fold0"},{flair}')
    with pytest.raises(InputError, match="unknown average 'step'"):
        opened(three, average='step')


def test_learned_fields_go_apart(tmp_path):
    for k in range(2):
        stored(tmp_path / f'm/{k}', k, model=TINY)
    den = opened(tmp_path / 'm/1').den
    with torch.no_grad():
        for p in den.bridge.parameters():
            p.add_(0.1)
    save_model(tmp_path / 'm/1', den, TINY, VOLUME)
    with pytest.raises(InputError, match='bridges differ'):
        opened(tmp_path / 'm', average='steps')
    assert opened(tmp_path / 'm').average == 'results'


def test_values_labels_and_spreads():
    whole = [np.array([0, 3, 250], 'u1'), np.array([1, 3, 255], 'u1'), np.array([1, 9, 255], 'u1')]
    assert mean_values(whole, False).tolist() == [1, 5, 253]
    assert mean_values(whole, True).tolist() == [1, 3, 255]
    assert mean_values(whole, True).dtype == np.uint8
    drawn = np.random.default_rng(0).normal(size=(3, 4, 50))  # member, sample, pixel
    means, stds = list(drawn.mean(1)), list(drawn.std(1, ddof=1))
    assert np.allclose(spread_of_all(means, stds, 4), drawn.reshape(12, 50).std(0, ddof=1))


def test_samples_of_results_and_of_steps(three, tmp_path):
    source = head(tmp_path / 'a_T1w.nii.gz')
    for average in ('steps', 'results'):
        tr = opened(three, average=average)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            got = tr.maps(source, samples=2, steps=2)
        assert set(got) == {'mean', 'std'} and np.asarray(got['std'].dataobj).max() > 0
        assert got['mean'].shape == (20, 24, 6)
    with pytest.raises(InputError, match='mix'):
        answer(tr, source, mix=True, steps=2)


@pytest.mark.parametrize('plane', ['axial', 'coronal', 'all'])
def test_left_and_right(plane, tmp_path):
    model = dict(TINY, method='regression')
    tr = opened(stored(tmp_path / 'm', 1, plane=plane, model=model))
    source = head(tmp_path / 'a_T1w.nii.gz', shape=(20, 20, 20))
    image = nib.load(source)
    turned = nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine)
    both = lambda **how: [answer(tr, v, force=True, **how) for v in (image, turned)]
    plain, mirrored = both()
    assert np.abs(mirrored[::-1] - plain).max() > 1
    seen, mirrored = both(flips='left-right')
    assert np.abs(mirrored[::-1] - seen).max() < 0.05  # of 500
    assert np.abs(seen - plain).max() > 1


def test_mirrors_that_are_not_there_are_refused(tmp_path):
    tr = opened(stored(tmp_path / 'm', 1, plane='sagittal'))
    source = head(tmp_path / 'a_T1w.nii.gz')
    with pytest.raises(InputError, match='do not show left and right'):
        answer(tr, source, flips='left-right')
    with pytest.raises(InputError, match="unknown flips 'horizontal'"):
        answer(tr, source, flips='horizontal')


def test_notes_name_all(three, tmp_path):
    source, out = head(tmp_path / 'a_T1w.nii.gz'), tmp_path / 'out.nii.gz'
    done = xmodal('translate', three, source, out, '--steps', 2, '--flips', 'left-right')
    assert done.returncode == 0, done.stderr
    notes = json.loads((tmp_path / 'out.json').read_text())['xmodal']
    assert [v.split()[0] for v in notes['members']] == ['fold0', 'fold1', 'fold2']
    assert len({v.split()[1] for v in notes['members']}) == 3
    assert (notes['average'], notes['flips'], notes['calls']) == ('steps', 'left-right', 2 * 3 * 2)
    again = xmodal('translate', three, source, out, '--steps', 2)
    assert again.returncode == 1 and 'flips' in again.stderr


def test_out_of_fold(tmp_path):
    people, root = ['sub-1', 'sub-2', 'sub-3'], tmp_path / 'study'
    for k in range(3):  # sub-9 was never seen, sub-all by every model
        own = [p for p in people if p != people[k]] + ['sub-all']
        stored(tmp_path / f'm/fold{k}', k, own)
    for who in (*people, 'sub-9', 'sub-all'):
        head(root / f'{who}/anat/{who}_T1w.nii.gz')
    tr, out = opened(tmp_path / 'm'), tmp_path / 'out'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        bad = translate_paths(tr, root, out, bids=True, out_of_fold=True, steps=2)
    assert len(bad) == 1 and 'sub-all was in the training of every model' in bad[0][1]
    notes = {p.name[:5]: json.loads(p.read_text())['xmodal'] for p in out.glob('*/anat/*.json')}
    by = {k: [m.split()[0] for m in v['members']] for k, v in notes.items()}
    assert by == {
        'sub-1': ['fold0'],
        'sub-2': ['fold1'],
        'sub-3': ['fold2'],
        'sub-9': ['fold0', 'fold1', 'fold2'],
    }
    made = nib.load(out / 'sub-2/anat/sub-2_desc-synth_T2w.nii.gz')
    want = answer(tr.members[1], root / 'sub-2/anat/sub-2_T1w.nii.gz', steps=2)
    assert np.array_equal(np.asarray(made.dataobj), want)
    with pytest.raises(InputError, match='use --bids'):
        translate_paths(tr, root, out, out_of_fold=True)


WORDS = (
    '--method regression --cross 3 --made-subjects 8 --made-voxel 6 --size 32 --ch 8 --mults 1,2'
    ' --steps 6 --val-every 3 --save-every 3 --batch 4 --keep psnr'
)


def test_training_in_folds(tmp_path):
    model, said = trained_by_command(tmp_path, 'many', WORDS)
    run = model.parent
    assert sorted(p.name for p in model.iterdir()) == ['fold0', 'fold1', 'fold2']
    splits = [load_config(model / f'fold{k}')['training']['subjects'] for k in range(3)]
    val = [s for v in splits for s in v['val']]
    assert len(val) == len(set(val)) and all(v['test'] == splits[0]['test'] for v in splits)
    for v in splits:
        assert set(v['train']) | set(v['val']) == set(val) and not set(v['train']) & set(v['val'])
    scores = json.loads((run / 'metrics.json').read_text())['scores']
    assert list(scores) == ['regression', 'fold0', 'fold1', 'fold2', 'identity']
    each = [scores[f'fold{k}']['mse']['mean'] for k in range(3)]
    assert scores['regression']['mse']['mean'] < np.mean(each) and len(set(each)) == 3
    # killed in the second: the first is left as it is, the second goes on from its checkpoint
    before = (model / 'fold1/model.safetensors').read_bytes()
    first = (run / 'fold0/model/model.safetensors').stat().st_mtime_ns
    shutil.rmtree(model)
    shutil.rmtree(run / 'fold2')
    shutil.rmtree(run / 'fold1/model')
    for name in ('fold1/checkpoints/step-000000006', 'metrics.json', 'finished.json'):
        (shutil.rmtree if (run / name).is_dir() else lambda p: p.unlink(missing_ok=True))(
            run / name
        )
    again, said = trained_by_command(tmp_path, 'many', WORDS + ' --resume')
    assert 'runs/many/fold0: is there already' in said and 'runs/many/fold1: is there' not in said
    assert (run / 'fold0/model/model.safetensors').stat().st_mtime_ns == first
    assert (again / 'fold1/model.safetensors').read_bytes() == before
    assert json.loads((run / 'metrics.json').read_text())['scores'] == scores
    tr = opened(again)
    assert (len(tr.members), tr.average) == (3, 'steps')


def test_cross_is_refused_where_it_cannot_be(tmp_path):
    from xmodal.train import Job, plan

    for words, text in ((dict(cross=1), '2 or more'), (dict(cross=2, draws=4), 'one model')):
        with pytest.raises(InputError, match=text):
            plan(Job(name='not-there', **words))
