"The weights of the best validation: kept, put back, and the same after a stop."

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from xmodal.core import InputError
from xmodal.nets.build import build
from xmodal.methods import get_method
from xmodal.training.loop import evenly, Judged, Recipe, train, validate


class Few(torch.utils.data.Dataset):
    "Six images that can be learnt by heart."

    def __init__(self, first=0):
        self.first, self.subjects = first, np.array([f'p{k}' for k in range(6)])

    def __len__(self):
        return 6

    def __getitem__(self, i):
        g = torch.Generator().manual_seed(self.first + i)
        y = torch.randn(1, 8, 8, generator=g).clamp(-1, 1)
        return dict(y=y, x0=(y + torch.randn(1, 8, 8, generator=g)).clamp(-1, 1) / 2, i=i)


TINY = dict(method='regression', channels=1, net=dict(ch=8, mults=[1, 2], layers=1))
RECIPE = Recipe(steps=40, batch=4, lr=1e-2, ema=0.5)
HOW = dict(val_every=4, log_every=4, save_every=4, device='cpu', progress=False)


def trained(out, data=None, judged=Judged('psnr'), **how):
    "A small network that learns six images by heart, and its log."
    torch.manual_seed(0)
    den = build(**TINY)
    more = {**HOW, 'val': Few(100), **how}
    return den, train(den, data or Few(), out, 'regression', RECIPE, TINY, judged=judged, **more)


def test_the_best_weights_are_those_of_the_best_line(tmp_path):
    den, log = trained(tmp_path)
    seen = log.dropna(subset=['val_psnr']).set_index('step')['val_psnr']
    kept = log.attrs['kept']
    assert kept['step'] == seen.idxmax() < 40  # it has learnt by heart after that
    again = validate(den, None, Few(100), get_method('regression'))['psnr']
    assert abs(again - kept['value']) < 1e-6
    last, log = trained(tmp_path / 'last', judged=Judged())
    assert 'kept' not in log.attrs and not (tmp_path / 'last' / 'checkpoints' / 'best').exists()
    assert validate(last, None, Few(100), get_method('regression'))['psnr'] < again


def test_a_training_that_makes_a_model_worse_keeps_what_it_began_with(tmp_path, capsys):
    begun, _ = trained(tmp_path / 'first')
    good = validate(begun, None, Few(100), get_method('regression'))['psnr']
    spoils = replace(RECIPE, lr=0.5)
    how = dict(val=Few(100), **HOW)
    for judged in (Judged('psnr', begins=True), Judged('psnr')):
        den = build(**TINY)
        den.load_state_dict(begun.state_dict())
        out = tmp_path / str(judged.begins)
        log = train(den, Few(50), out, 'regression', spoils, TINY, judged=judged, **how)
        left = validate(den, None, Few(100), get_method('regression'))['psnr']
        assert (log.attrs['kept']['step'] == 0) == judged.begins, log.attrs
        assert (abs(left - good) < 1e-6) == judged.begins, (left, good)
    assert 'it has made nothing better' in capsys.readouterr().out


def test_patience_ends_a_training_and_a_resume_does_not_go_on(tmp_path, capsys):
    den, log = trained(tmp_path, judged=Judged('psnr', patience=2))
    end = int(log.step.iloc[-1])
    assert end == log.attrs['kept']['step'] + 8 < 40
    capsys.readouterr()
    again, log = trained(tmp_path, judged=Judged('psnr', patience=2), resume=True)
    assert int(log.step.iloc[-1]) == end
    said = capsys.readouterr().out
    assert f'ended at step {end} already: 2 validations' in said and 'change patience' in said
    pairs = zip(den.state_dict().values(), again.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs)


class Stops(Few):
    "Interrupted while it loads the first image of step 22."

    calls = 0

    def __getitem__(self, i):
        self.calls += 1
        if self.calls > 4 * 21:
            raise KeyboardInterrupt
        return super().__getitem__(i)


def test_a_stop_changes_nothing(tmp_path):
    den, log = trained(tmp_path / 'whole')
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / 'parts', Stops())
    again, parts = trained(tmp_path / 'parts', resume=True)
    assert parts.attrs['kept'] == log.attrs['kept']
    pairs = zip(den.state_dict().values(), again.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs)


def test_another_rule_begins_to_judge_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, Stops())
    _, log = trained(tmp_path, judged=Judged('crps'), resume=True, change=('keep',))
    assert log.attrs['kept']['keep'] == 'crps' and log.attrs['kept']['step'] > 20
    assert json.loads((tmp_path / 'checkpoints/best/best.json').read_text())['keep'] == 'crps'


@pytest.mark.parametrize(
    'judged, how, word',
    [
        (Judged('crps'), {}, "keep = 'psnr', now it is 'crps'"),
        (Judged('last'), {}, "keep = 'psnr', now it is 'last'"),
        (Judged('psnr', patience=3), {}, 'patience = 0, now it is 3'),
        (Judged('psnr', images=2), {}, 'val_images = 16, now it is 2'),
        (Judged('psnr'), dict(val_every=8), 'val_every = 4, now it is 8'),
    ],
)
def test_another_rule_that_nobody_named_is_refused(tmp_path, judged, how, word):
    "Otherwise other weights would be kept than the notes of the run say."
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, Stops())
    with pytest.raises(InputError, match=f'{word}; use the same value, .* or change'):
        trained(tmp_path, judged=judged, resume=True, **how)
    _, log = trained(tmp_path, resume=True)  # as it was begun it goes on
    assert log.attrs['kept']['keep'] == 'psnr'


def test_a_run_of_the_last_weights_is_not_judged(tmp_path):
    "How often it validates changes nothing, and may be other; that it is judged from now on is said."
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, Stops(), judged=Judged())
    with pytest.raises(InputError, match="keep = 'last', now it is 'psnr'"):
        trained(tmp_path, resume=True)
    _, log = trained(tmp_path, judged=Judged(images=3), resume=True, val_every=8)
    assert int(log.step.iloc[-1]) == 40


@pytest.mark.parametrize('text', ['', '[]', '{"keep": "psnr"}', '{'])
def test_a_damaged_rule_is_named(tmp_path, text):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, Stops())
    (tmp_path / 'checkpoints/judged.json').write_text(text)
    with pytest.raises(InputError, match='judged.json: damaged'):
        trained(tmp_path, resume=True)


def test_a_named_rule_is_said(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, Stops())
    trained(tmp_path, judged=Judged('psnr', 9), resume=True, change=('patience',))
    assert 'with patience 9 (was 0)' in capsys.readouterr().out


def test_what_cannot_be_judged_is_refused(tmp_path):
    for wrong in (dict(val=None), dict(val=torch.utils.data.Subset(Few(), []))):
        with pytest.raises(InputError, match='validation images'):
            trained(tmp_path, **wrong)


def test_validation_looks_at_everybody():
    "The first sixteen of a set that stands person by person may be one person's."
    people = np.repeat(np.arange(5), [40, 3, 9, 20, 8])
    assert set(people[evenly(80, 20)]) == set(range(5))


def test_a_damaged_record_is_named(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, Stops())
    for text in ('{"step": 4', '[]', '{"step": "4", "value": 1, "keep": "psnr", "images": 16}'):
        (tmp_path / 'checkpoints/best/best.json').write_text(text)
        with pytest.raises(InputError, match='best.json: damaged'):
            trained(tmp_path, resume=True)
