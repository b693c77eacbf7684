"Augmentation: what a sample looks like hangs on its number, and the recipe of a run says it."

import pytest
import torch

from test_best import Few
from xmodal.core import InputError
from xmodal.training.loop import Draws, Recipe
from xmodal.train import Job, plan, recipe_of

monai = pytest.importorskip('monai')


def test_a_sample_hangs_on_its_number_alone():
    a, b = (Draws(Few(), 3, augment='strong', flips='horizontal,vertical') for _ in range(2))
    first = [a[n] for n in range(5)]
    torch.manual_seed(99)
    for n in (4, 0, 2, 2, 3, 1):
        again = b[n]
        assert torch.equal(again['y'], first[n]['y']) and torch.equal(again['x0'], first[n]['x0'])
    plain = [Draws(Few(), 3)[n] for n in range(5)]
    assert all(not torch.equal(v['y'], w['y']) for v, w in zip(first, plain))
    assert all(v['noise'] == w['noise'] and v['t'] == w['t'] for v, w in zip(first, plain))


def test_workers_and_other_states_of_the_generators_change_nothing():
    from torch.utils.data import DataLoader

    draws = Draws(Few(), 5, augment='strong')
    numbers = [[0, 1], [2, 3]]
    alone, several = (
        [v['y'] for v in DataLoader(draws, batch_sampler=numbers, num_workers=k)] for k in (0, 2)
    )
    assert all(torch.equal(v, w) for v, w in zip(alone, several))


def test_flips_are_halves_and_of_both_pictures():
    draws, plain = Draws(Few(), 3, flips='horizontal'), Draws(Few(), 3)
    turned = 0
    for n in range(40):
        v, w = draws[n], plain[n]
        ways = [all(torch.allclose(v[k], f(w[k]), atol=1e-6) for k in ('y', 'x0')) for f in WAYS]
        assert any(ways)
        turned += ways[1]
    assert 8 < turned < 32


WAYS = (lambda v: v, lambda v: v.flip(-1))


def test_the_recipe_of_a_job_says_it_and_strange_words_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = Job(dataset='phantom', method='regression', augment='light', flips='vertical', ch=8)
    r = recipe_of(plan(job), 'regression')
    assert (r.augment, r.flips) == ('light', 'vertical')
    assert (Recipe().augment, Recipe().flips) == ('none', '')
    with pytest.raises(InputError, match='light, none, strong|none, light, strong'):
        Recipe(augment='heavy')
    with pytest.raises(InputError, match='horizontal'):
        Recipe(flips='sideways')


def test_without_monai_it_is_refused_with_a_remedy(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, 'monai', None)
    with pytest.raises(InputError, match=r'pip install "xmodal\[monai\]"'):
        Recipe(augment='light')
    Recipe()
