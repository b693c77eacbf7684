"""How unusual a scan is: the p-value is honest, what is planted is noticed, the reference belongs to its
weights, and a translation says it in one line and in its notes, and refuses nothing.
"""

import json
import shutil
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from small_model import VOLUME, echo, xmodal
from test_calibrate import model, named, people

from xmodal.core import InputError
from xmodal.evaluation import unusual
from xmodal.evaluation.unusual import FILES, Reference, activations, body_planes, intensities
from xmodal.evaluation.unusual import judged, load_reference, outline, rank_of, save_reference
from xmodal.evaluation.unusual import scores_among
from xmodal.folders import look_at, network_part, note_of, translate_paths
from xmodal.nets.build import build
from xmodal.translate import SampleOptions, Translator, load_source


def cloud(rng, n, d=6):
    "People whose features hang together, as those of heads do."
    mix = np.random.default_rng(99).normal(size=(d, d))
    return rng.standard_normal((n, d)) @ mix


def test_new_people_of_the_same_kind_are_warned_about_as_often_as_it_says():
    "Over many references: P(p <= alpha) is alpha, for the parts and for all of them together."
    rng, found = np.random.default_rng(0), {'one': [], 'two': [], 'overall': []}
    for _ in range(400):
        one, two = cloud(rng, 25), cloud(rng, 25, 9)
        s = scores_among(dict(one=one[:-1], two=two[:-1]), dict(one=one[-1], two=two[-1]))
        for k in found:
            found[k].append(rank_of(s[k])['P'])
    for k, p in found.items():
        assert min(p) == 1 / 25
        for alpha in (1 / 25, 5 / 25, 12 / 25):
            share = np.mean(np.array(p) <= alpha + 1e-9)
            assert abs(share - alpha) < 4 * np.sqrt(alpha * (1 - alpha) / 400), (k, alpha, share)


def test_what_is_far_in_one_direction_of_many_is_found():
    "Off by little in every number, but against the way in which they hang together."
    rng = np.random.default_rng(1)
    one = rng.standard_normal((60, 1))
    known = one + 0.3 * rng.standard_normal((60, 4))
    odd = np.array([1.2, -1.2, 1.2, -1.2])
    assert np.abs((odd - known.mean(0)) / known.std(0)).max() < 1.5
    found = scores_among(dict(a=known), dict(a=odd))
    assert rank_of(found['a'])['MoreUnusual'] == 0 and rank_of(found['overall'])['P'] == 1 / 61


def test_few_people_warn_nobody():
    for n, warned in ((8, False), (9, True), (45, True)):
        known = cloud(np.random.default_rng(n), n)
        found = judged(Reference('', dict(anatomy=known)), dict(anatomy=known.mean(0) + 1e3))
        assert found['Parts']['overall']['MoreUnusual'] == 0
        assert bool(found['Warning']) == warned, n


def test_wide_draws_are_named():
    known = cloud(np.random.default_rng(0), 30)
    usual = Reference('', dict(anatomy=known), np.linspace(0.1, 0.2, 20))
    said = lambda spread: judged(usual, dict(anatomy=known.mean(0)), spread)
    assert 'further apart' in said(0.3)['Warning'] and not said(0.15)['Warning']
    assert said(0.3)['Parts']['spread'] == dict(Score=0.3, People=20, MoreUnusual=0, P=1 / 21)
    assert 'spread' not in said(None)['Parts']


def head(seed=0, slices=5):
    rng = np.random.default_rng(seed)
    at = np.stack(np.meshgrid(*[np.linspace(-1, 1, 40)] * 2, indexing='ij'))
    inside = (at[0] / 0.8) ** 2 + (at[1] / 0.6) ** 2 < 1
    grey = 0.3 * at[0] + 0.1 * rng.standard_normal((slices, 40, 40))
    return np.where(inside, grey, -1.0).astype(np.float32)


def test_what_each_part_sees():
    y = head()
    body = body_planes(y)
    changed = lambda f, v: np.abs(f(v, body_planes(v)) - f(y, body)).max()
    wider = np.pad(y, ((0, 0), (8, 8), (8, 8)), constant_values=-1)
    assert changed(outline, wider) < 1e-6  # a larger field of view is not another head
    assert changed(outline, y.transpose(0, 2, 1)) > 5
    assert changed(intensities, y.transpose(0, 2, 1)) < 1e-6
    noisy = np.where(body, y + 0.2 * np.random.default_rng(1).standard_normal(y.shape), y)
    assert changed(intensities, noisy.astype(np.float32)) > 0.3
    assert changed(intensities, np.where(body, 1.5 * y + 0.2, y)) > 0.1
    ghost = np.maximum(y, np.roll(y, 13, 1) * 0.2 - 0.8)
    assert changed(intensities, ghost) > 0.05


def test_the_network_is_left_as_it_was():
    den = build('cdtsde', channels=1, net=dict(ch=8, mults=[1, 2], layers=1)).eval()
    y = head()
    ask = lambda: activations(den, 'cdtsde', y[:, None], body_planes(y))
    once, state = ask(), torch.get_rng_state()
    np.testing.assert_array_equal(ask(), once)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks for m in den.modules())
    den.bridge = None  # it breaks on the way
    with pytest.raises(AttributeError):
        ask()
    assert not any(m._forward_hooks for m in den.modules())


def test_a_reference_belongs_to_its_weights(tmp_path):
    kept = Reference('a' * 12, dict(anatomy=cloud(np.random.default_rng(0), 12)), np.ones(3), {})
    save_reference(tmp_path, kept)
    back = load_reference(tmp_path, 'a' * 12)
    np.testing.assert_allclose(back.parts['anatomy'], kept.parts['anatomy'], rtol=1e-6)
    assert (
        load_reference(tmp_path, 'b' * 12) is None and load_reference(tmp_path / 'no', 'a') is None
    )
    about = json.loads((tmp_path / FILES[0]).read_text())
    (tmp_path / FILES[0]).write_text(json.dumps(about | dict(version=unusual.VERSION + 1)))
    assert load_reference(tmp_path, 'a' * 12) is None  # of a later version
    for broken in ('{', '[]', json.dumps(about | dict(features=dict(anatomy=3)))):
        (tmp_path / FILES[0]).write_text(broken)
        with pytest.raises(InputError, match='xmodal calibrate'):
            load_reference(tmp_path, 'a' * 12)
    (tmp_path / FILES[0]).write_text(json.dumps(about))
    (tmp_path / FILES[1]).write_bytes(b'nothing')
    with pytest.raises(InputError, match='unusual.safetensors'):
        load_reference(tmp_path, 'a' * 12)


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "Thirty people; ten trained, twelve validated; calibrated by the command."
    root = tmp_path_factory.mktemp('unusual')
    people(root / 'bids', 30)
    split = dict(train=named(*range(1, 11)), val=named(*range(11, 23)), test=named(*range(23, 31)))
    model(root / 'model', split)
    done = xmodal('calibrate', root / 'model', '--root', root / 'bids', '--samples', 3)
    assert done.returncode == 0, done.stderr
    assert 'what is usual: 22 people of the training (intensity, anatomy, network)' in done.stdout
    return root


def source(root, i):
    return root / f'bids/sub-{i:03d}/anat/sub-{i:03d}_T1w.nii.gz'


def test_a_translation_says_it(study, tmp_path):
    "A usual scan without a word; one on its side with one line, in its notes too, and translated."
    words = '--samples', 3, '--interval', 0.9
    done = xmodal('translate', study / 'model', source(study, 25), tmp_path / 'a.nii.gz', *words)
    assert done.returncode == 0 and 'unusual' not in done.stderr
    usual = note_of(tmp_path / 'a.nii.gz')
    assert set(usual['Unusual']['Parts']) == {
        'intensity',
        'anatomy',
        'network',
        'overall',
        'spread',
    }
    assert usual['Unusual']['Parts']['overall']['People'] == 22
    assert usual['Unusual']['Parts']['spread']['People'] == 12
    assert usual['Unusual']['Parts']['overall']['P'] > 0.05 and not usual['Unusual']['Warning']
    scan = nib.load(source(study, 25))
    grey = scan.get_fdata()
    grey[8:] = 0  # half a head
    nib.save(nib.Nifti1Image(grey.astype(np.float32), scan.affine), tmp_path / 'half.nii.gz')
    words = tmp_path / 'half.nii.gz', tmp_path / 'b.nii.gz'
    done = xmodal('translate', study / 'model', *words)
    said = [line for line in done.stderr.splitlines() if 'unusual' in line]
    assert done.returncode == 0 and len(said) == 1 and 'all 22 people of the training' in said[0]
    note = note_of(tmp_path / 'b.nii.gz')
    assert note['Unusual']['Warning'] in note['Doubts'] and note['Unusual']['Warning'] in said[0]
    assert 'spread' not in note['Unusual']['Parts']  # one draw is not compared with three


def test_the_reference_is_computed_as_a_translation_is(study):
    "Somebody of the reference is found in it, number by number."
    tr = Translator.from_pretrained(study / 'model', 'cpu')
    known = load_reference(
        study / 'model', json.loads((study / 'model' / FILES[0]).read_text())['weights']
    )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = load_source(tr, source(study, 7), None, None, 'shared', False, SampleOptions())
    look = look_at(loaded, known)
    parts = dict(look.parts, network=network_part(tr, loaded, look.body))
    for k, v in parts.items():
        np.testing.assert_allclose(known.parts[k][6], v, rtol=1e-4, atol=1e-5)


def test_other_weights_and_no_reference_say_nothing(study, tmp_path):
    for change in ('weights', 'absent'):
        shutil.copytree(study / 'model', tmp_path / change)
        about = tmp_path / change / FILES[0]
        if change == 'absent':
            about.unlink()
        else:
            about.write_text(json.dumps(json.loads(about.read_text()) | dict(weights='other')))
        output = tmp_path / f'{change}.nii.gz'
        done = xmodal('translate', tmp_path / change, source(study, 25), output)
        assert done.returncode == 0 and 'Unusual' not in note_of(output)


def test_a_failure_of_looking_costs_no_translation(study, tmp_path, monkeypatch):
    import xmodal.folders as folders

    def broken(*_, **__):
        raise ValueError('broken')

    monkeypatch.setattr(folders, 'network_part', broken)
    tr = Translator.from_pretrained(study / 'model', 'cpu')
    with pytest.warns(UserWarning, match='how unusual it is was not measured'):
        assert not translate_paths(tr, source(study, 25), tmp_path / 'a.nii.gz', progress=False)
    note = note_of(tmp_path / 'a.nii.gz')
    assert 'Unusual' not in note and 'not measured' in note['Doubts'][0]


def test_models_without_such_a_part_have_two(study):
    "Blocks, tiles, networks of another make: intensities and anatomy remain."
    tr = echo(VOLUME)
    scan = nib.Nifti1Image(head().T * 500 + 600, np.diag([3.0, 3, 3, 1]))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = load_source(tr, scan, None, None, 'shared', True, SampleOptions())
    look = look_at(loaded, Reference('', {}))
    assert network_part(tr, loaded, look.body) is None and set(look.parts) == {
        'intensity',
        'anatomy',
    }
    assert look_at(loaded) is None
