"""Models that come with the package: a name in the place of a folder, everywhere; small, described, and
never written to. The rules are tried on a made model; what is really shipped is tried as it lies.
"""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from small_model import TINY, VOLUME, xmodal

import xmodal.training.shipped as shipped
from xmodal.core import InputError
from xmodal.nets.build import build
from xmodal.simulate.brain import write_bids
from xmodal.training.model_folder import find_model, find_models, load_config, save_model
from xmodal.training.shipped import ABOUT, about_shipped, copy_shipped, refuse_shipped
from xmodal.training.shipped import shipped_folder, shipped_lines, shipped_models, shipped_note

EVERY = sorted(shipped_models())


@pytest.fixture
def made(tmp_path, monkeypatch):
    "One made model, as if it came with the package."
    folder = tmp_path / 'weights' / 'toy-t1w-t2w'
    torch.manual_seed(0)
    save_model(folder, build(**TINY), TINY, VOLUME)
    (folder / 'README.md').write_text('# Toy\n')
    about = dict.fromkeys(ABOUT, 'none') | dict(what='T1w to T2w of a toy', people='2 people')
    (folder / 'about.json').write_text(json.dumps(about))
    monkeypatch.setattr(shipped, 'shipped_models', lambda: {'toy-t1w-t2w': folder})
    return folder


def test_a_name_stands_for_the_folder(made, tmp_path, monkeypatch):
    assert find_model('toy-t1w-t2w') == made and find_models('toy-t1w-t2w') == [made]
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'toy-t1w-t2w').mkdir()  # somebody's own folder of that name is what he means
    assert shipped_folder('toy-t1w-t2w') is None


@pytest.mark.parametrize(
    'name, words', [('toy-t1w-t2', 'toy-t1w-t2w'), ('runs/first/model', 'xmodal models')]
)
def test_a_model_that_is_not_there(made, name, words):
    with pytest.raises(InputError, match='no such model folder') as e:
        load_config(find_model(name))
    assert words in str(e.value)


def test_it_is_said_once_what_it_is(made):
    assert 'trained on 2 people' in shipped_note(made) and shipped_note(made.parent) == ''
    assert any('toy-t1w-t2w' in line and '2 people' in line for line in shipped_lines())


def test_it_is_not_written_to(made, tmp_path):
    with pytest.raises(InputError, match='xmodal models toy-t1w-t2w --to FOLDER'):
        refuse_shipped(made)
    own = copy_shipped('toy-t1w-t2w', tmp_path / 'own')
    refuse_shipped(own)  # a copy is somebody's own
    assert load_config(own) == load_config(made)
    with pytest.raises(InputError, match='there already'):
        copy_shipped('toy-t1w-t2w', own)
    with pytest.raises(InputError, match='toy-t1w-t2w'):
        copy_shipped('toy-t1w-t2', tmp_path / 'other')


# --- what is really shipped


def test_together_they_fit_into_a_wheel():
    assert sum(about_shipped(v)['mb'] for v in shipped_models().values()) < 25


@pytest.mark.parametrize('name', EVERY)
def test_each_says_what_it_is(name):
    folder = shipped_models()[name]
    said = about_shipped(folder)
    assert {*ABOUT} <= {*said} and all(said[k] for k in ABOUT) and said['mb'] < 10
    assert {f.name for f in folder.iterdir()} == {
        'README.md',
        'about.json',
        'config.json',
        'model.safetensors',
    }
    card = (folder / 'README.md').read_text(encoding='utf-8')
    assert 'not for clinical use' in card and said['people'] in card and said['cite'] in card
    assert all(line in card for line in said['measured'])
    text = (folder / 'config.json').read_text(encoding='utf-8') + card
    assert not re.search(r'/(work|home|root|tmp)/', text)
    out = xmodal('models', name)
    assert out.returncode == 0 and card.strip() == out.stdout.strip()


@pytest.mark.parametrize('name', [v for v in EVERY if v.startswith('brain')])
def test_a_scan_is_translated_by_name(name, tmp_path):
    data = load_config(shipped_models()[name])['data']
    write_bids(tmp_path / 'scan', n=1, seed=3, modalities=(data['source'],), voxel=6.0)
    source = next((tmp_path / 'scan').glob(f'sub-*/anat/*{data["source"]}.nii.gz'))
    out = xmodal('translate', name, source, tmp_path / 'out.nii.gz')
    assert out.returncode == 0, out.stderr
    assert f'{name} is a demonstrator' in out.stderr
    made = nib.load(tmp_path / 'out.nii.gz')
    assert made.shape == nib.load(source).shape and np.asarray(made.dataobj).std() > 0


@pytest.mark.skipif('brain-t1w-t2w' not in EVERY, reason='the model of the demo is not shipped')
def test_the_demo_ends_in_a_page(tmp_path):
    out = xmodal('demo', tmp_path / 'demo', '--no-open')
    assert out.returncode == 0, out.stderr
    page = next(line.removeprefix('page: ') for line in out.stdout.splitlines() if 'page: ' in line)
    assert '<img' in open(page, encoding='utf-8').read()
    again = xmodal('demo', tmp_path / 'demo', '--no-open')
    assert again.returncode == 1 and 'there already' in again.stderr
    shutil.rmtree(tmp_path / 'demo')


# --- trained on from one: what nobody has decided is the model's


def test_a_training_that_starts_from_a_model_is_like_it(tmp_path, capsys):
    from xmodal.train import Job, like_start

    folder = tmp_path / 'model'
    save_model(folder, build(**TINY), TINY, VOLUME | dict(tile=16, size=40))
    p = like_start(Job(init=str(folder)))
    said = capsys.readouterr().out
    assert (p.ch, p.mults, p.size, p.patch, p.spacing) == (8, '1,2', 0, 16, 3.0)
    assert p.source_window == '0:1000' and 'ch 8' in said and 'patch 16' in said
    assert like_start(Job(init=str(folder), ch=16, patch=32)).patch == 32
    here = like_start(Job(init=str(folder), dataset='test'))
    assert (here.source, here.target) == ('T1w', 'T2w') and p.target == ''
    assert like_start(Job(init=str(folder), dataset='test', target='CT')).source == ''
    whole = tmp_path / 'whole'
    save_model(whole, build(**TINY), TINY, VOLUME)
    assert like_start(Job(init=str(whole))).size == 32
    assert like_start(Job()) == Job()
    with pytest.raises(InputError, match='no such model folder'):
        like_start(Job(init=str(tmp_path / 'none')))


def test_a_training_that_starts_from_a_model_takes_smaller_steps(tmp_path):
    from xmodal.train import GENTLE, Job, plan, recipe_line, recipe_of

    folder = tmp_path / 'model'
    save_model(folder, build(**TINY), TINY, VOLUME)
    rates = {}
    for how in ({}, dict(init=str(folder)), dict(init=str(folder), lr=3e-4)):
        p = plan(Job(dataset='phantom', name='never', method=TINY['method'], **how))
        rates[len(how)] = recipe_of(p, p.method).lr
        assert ('begins with a model' in recipe_line(p)) == (len(how) == 1)
    assert rates[1] == pytest.approx(rates[0] / GENTLE) and rates[2] == 3e-4
