"Recipes as a whole, budgets, and runs that are changed on their way."

from types import SimpleNamespace
from dataclasses import asdict

import numpy as np
import pytest
import torch

from xmodal.core import InputError
from xmodal.methods import methods, published_recipes, recipe_for
from xmodal.nets.build import build
from xmodal.train import Job, dropout_of, plan, recipe_of
from xmodal.training.adversarial import fit
from xmodal.training.loop import Recipe, lr_at, train

TINY = dict(method='regression', channels=1, net=dict(ch=8, mults=[1, 2], layers=1))
QUIET = dict(device='cpu', progress=False)


class Few(torch.utils.data.Dataset):
    "Six pairs of noise."

    def __init__(self, first=0):
        self.first, self.subjects = first, np.array([f'p{k}' for k in range(6)])

    def __len__(self):
        return 6

    def __getitem__(self, i):
        g = torch.Generator().manual_seed(self.first + i)
        y = torch.randn(1, 8, 8, generator=g).clamp(-1, 1)
        return dict(y=y, x0=(y + torch.randn(1, 8, 8, generator=g)).clamp(-1, 1) / 2, i=i)


def made(seed=0, **net):
    torch.manual_seed(seed)
    return build(**{**TINY, 'net': TINY['net'] | net})


def trained(out, recipe, data=None, **how):
    "A small network after a training, and its log."
    den = made()
    return den, train(den, data or Few(), out, 'regression', recipe, TINY, **{**QUIET, **how})


def weights(den):
    return torch.cat([v.flatten() for v in den.state_dict().values()])


KINDS = dict(
    adamw=torch.optim.AdamW,
    adam=torch.optim.Adam,
    radam=torch.optim.RAdam,
    rmsprop=torch.optim.RMSprop,
)


@pytest.mark.parametrize('kind', KINDS)
def test_each_optimiser_is_pytorchs_and_a_stop_changes_nothing(tmp_path, kind):
    "The trainer's optimiser is that class, with the recipe's numbers; continuing gives the same."
    from xmodal.training.loop import Denoising

    more = dict(betas=(0.8, 0.95), weight_decay=0.03)
    r = Recipe(steps=8, batch=2, optimiser=kind, lr=1e-3, **more)
    (opt,) = Denoising(made(), methods['regression'], r, Few()).opts.values()
    assert type(opt) is KINDS[kind] and opt.param_groups[0]['weight_decay'] == 0.03
    assert opt.param_groups[0].get('betas', (0.8, 0.95)) == (0.8, 0.95)
    whole, _ = trained(tmp_path / 'whole', r)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / 'parts', r, Stops(2 * 5), save_every=2)
    again, _ = trained(tmp_path / 'parts', r, resume=True)
    assert torch.equal(weights(whole), weights(again))


class Stops(Few):
    "Interrupted after so many images."

    def __init__(self, after):
        super().__init__()
        self.left = after

    def __getitem__(self, i):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__getitem__(i)


def test_optimisers_schedules_and_averages_make_a_difference(tmp_path):
    "No two of these recipes end at the same weights."
    some = [dict(optimiser=k) for k in KINDS]
    some += [dict(schedule=k) for k in ('constant', 'polynomial')]
    some += [dict(ema=0.9), dict(ema=0.9, ema_start=4), dict(ema=0.9, ema_every=3)]
    some += [dict(weight_decay=0.5), dict(betas=(0.5, 0.9)), dict(clip=0.01), dict(warmup=0)]
    ends = []
    for k, more in enumerate(some):
        r = Recipe(**{**dict(steps=12, batch=2, lr=1e-2, warmup=1), **more})
        ends.append(weights(trained(tmp_path / str(k), r)[0]))
    for i, a in enumerate(ends):
        for b in ends[:i]:
            assert not torch.equal(a, b), (some[i], i)


def test_an_average_begins_late(tmp_path):
    "With a start behind the end the average is the network itself."
    r = dict(steps=10, batch=2, lr=1e-2)
    late = trained(tmp_path / 'a', Recipe(**r, ema=0.99, ema_start=10))[0]
    none = trained(tmp_path / 'b', Recipe(**r))[0]
    assert torch.allclose(weights(late), weights(none), rtol=0, atol=1e-6)
    begun = trained(tmp_path / 'c', Recipe(**r, ema=0.99, ema_start=5))[0]
    assert not torch.allclose(weights(begun), weights(none), rtol=0, atol=1e-4)


def recipe(method, row=None, **how):
    return recipe_of(SimpleNamespace(**asdict(Job(method=method, **how))), row or method)


@pytest.mark.parametrize('name', published_recipes)
def test_a_published_recipe_trains(tmp_path, name):
    "Three steps of every row that has one, on its own network."
    sizes = dict(unet=TINY['net'], unet256=dict(ch=8, levels=3), dtfnet=dict(ch=4))
    m = methods[name]
    net = dict(sizes[m.net], **(dict(text=5, by=m.text) if m.text else {}))
    model = dict(method=name, channels=1, net=net, arch=m.net)
    if m.pred == 'ddbm':
        model['scale'] = dict(s0=0.5, sT=0.5, cov=0.1)
    torch.manual_seed(0)
    den = build(**model)
    before = weights(den).clone()
    data = [
        dict(v, ctx=torch.ones(1, 3, 5)) if m.text else v
        for v in map(Large().__getitem__, range(6))
    ]
    r = Recipe(**recipe_for(name, recipe='published') | dict(steps=3, batch=2))
    log = fit(den, data, tmp_path, name, r, model, **QUIET)
    assert np.isfinite(log.loss).all() and not torch.equal(weights(den), before)


class Large(Few):
    "The same with 16 pixels, which critics need."

    def __getitem__(self, i):
        return {k: v.repeat(1, 2, 2) if k != 'i' else v for k, v in super().__getitem__(i).items()}


def test_what_is_typed_wins_and_the_baseline_keeps_its_own():
    typed = recipe('selfrdb', recipe='published', lr=3e-4, betas='0.8,0.9', clip=0.0, warmup=7)
    assert (typed.lr, typed.betas, typed.warmup, typed.optimiser) == (3e-4, (0.8, 0.9), 7, 'adam')
    assert typed.clip > 1e9 and recipe('cdtsde').clip == 1.0
    for how in (dict(), dict(recipe='published'), dict(lr=3e-4, ema=0.0, schedule='constant')):
        own = recipe('selfrdb', 'regression', steps=77, **how)
        assert own == recipe('regression', steps=77)
    assert recipe('regression', lr=3e-4).lr == 3e-4


def test_dropout_is_the_methods():
    asked = lambda **how: dropout_of(SimpleNamespace(**asdict(Job(**how))))
    assert asked(method='dbim') is None and asked(method='dbim', recipe='published') == 0.1
    assert asked(method='dbim', recipe='published', dropout=0.0) == 0.0
    ends = []
    for share in (0.0, 0.5):
        den = made(dropout=share).train()
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(0)
        torch.nn.init.ones_(den.net.unet.conv_out.weight)
        ends.append(den.net(x, torch.ones(2), x))
    assert not torch.equal(*ends)


@pytest.mark.parametrize(
    'wrong, word',
    [
        (dict(recipe='publised'), 'published'),
        (dict(method='flow', recipe='published'), 'no published recipe'),
        (dict(optimiser='adamx'), 'adam'),
        (dict(schedule='linear'), 'schedule'),
        (dict(betas='0.9'), 'betas'),
        (dict(betas='0.9,x'), 'betas'),
        (dict(betas='0.9,0.99', optimiser='rmsprop'), 'leave them out'),
        (dict(weight_decay=-0.5), 'weight_decay'),
        (dict(warmup=-2), 'warmup'),
        (dict(clip=-3.0), 'clip'),
        (dict(ema=0.0, ema_start=5), 'give ema'),
        (dict(dropout=1.0), 'dropout'),
        (dict(dropout=0.1, net='ncsnpp'), 'no dropout'),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(wrong, word):
    with pytest.raises(InputError, match=word):
        plan(Job(smoke=True, overwrite=True, name='no-such-run', **wrong))


def test_what_the_recipe_chose_is_said_in_one_line(capsys):
    plan(Job(method='dbim', recipe='published', lr=2e-4, name='no-such-run'))
    (line,) = [v for v in capsys.readouterr().out.splitlines() if v.startswith('recipe')]
    for word in ("DDBM's release", 'RAdam at 0.0002', 'constant', 'averaged weights 0.9999'):
        assert word in line
    assert line.endswith('dropout 0.1; asked for: lr')


def test_published_rates_over_a_run():
    "pix2pix: half of the steps at the peak, then a line to nothing; SelfRDB: a cosine to 1e-5."
    r = Recipe(**recipe_for('pix2pix', recipe='published') | dict(steps=200))
    np.testing.assert_allclose([lr_at(k, r) for k in (0, 99, 150, 199)], [2e-4, 2e-4, 1e-4, 2e-6])
    r = Recipe(**recipe_for('selfrdb', recipe='published') | dict(steps=1000))
    np.testing.assert_allclose([lr_at(k, r) for k in (0, 1000)], [1.6e-4, 1e-5])
