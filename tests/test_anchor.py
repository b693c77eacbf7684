"Bridges that start from a predicted mean and spread: fit, folds, draws, tiles, folder, refusals."

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import VOLUME
from xmodal.core import InputError
from xmodal.engine import RowPlan, train_row
from xmodal.job import Job
from xmodal.methods import calls, draw, get_method, with_anchor
from xmodal.nets.anchor import Anchor, anchor_loss, anchored_row, build_anchored, spread_rules
from xmodal.rows import SceneSampling
from xmodal.spread import Anchored, Spread
from xmodal.tiles import Tiled, Views
from xmodal.train import plan
from xmodal.training import folds as folded
from xmodal.training.loop import Recipe, checkpoints
from xmodal.training.model_folder import load_model, open_model, save_model

SMALL = dict(net=dict(ch=8, mults=[1], layers=1), anchor=dict(ch=8, mults=[1]))


class PerPixel(torch.nn.Module):
    "Mean and spread as functions of the source's pixel."

    def __init__(self):
        super().__init__()
        wide = torch.nn.Conv2d(1, 24, 1), torch.nn.Tanh(), torch.nn.Conv2d(24, 2, 1)
        self.net = torch.nn.Sequential(*wide)

    def forward(self, y):
        mu, raw = self.net(y).chunk(2, 1)
        return mu, 0.01 + torch.nn.functional.softplus(raw)


def pairs(n, seed):
    "Sources, targets, and the mean and spread that these were drawn with."
    gen = torch.Generator().manual_seed(seed)
    y = 2 * torch.rand(n, 1, 16, 16, generator=gen) - 1
    mu, sigma = 0.5 * y, 0.05 + 0.2 * (y + 1)
    return y, mu + sigma * torch.randn(y.shape, generator=gen), mu, sigma


@pytest.mark.parametrize('rule', spread_rules)
def test_the_fit_recovers_a_spread_that_depends_on_the_source(rule):
    torch.manual_seed(0)
    y, x0, mu, sigma = pairs(16, 1)
    net = PerPixel()
    opt = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(400):
        opt.zero_grad()
        anchor_loss(*net(y), x0, rule).mean().backward()
        opt.step()
    with torch.no_grad():
        off = [(got - want).abs().mean() for got, want in zip(net(y), (mu, sigma))]
    assert off[0] < 0.03 and off[1] < 0.03, off


@pytest.mark.parametrize('rule', spread_rules)
def test_the_rule_of_the_spread_cannot_move_the_mean(rule):
    "Its pull on the mean is that of squared error, in every pixel alike; unstopped it is not."
    _, x0, mu, sigma = pairs(2, 2)
    mean = torch.zeros_like(mu).requires_grad_()
    anchor_loss(mean, sigma, x0, rule).sum().backward()
    pull = mean.grad / (mean.detach() - x0)
    assert pull.std() < 1e-6 * pull.mean()
    free = torch.zeros_like(mu).requires_grad_()
    spread_rules[rule](free, sigma, x0).sum().backward()
    pull = free.grad / (free.detach() - x0)
    assert pull.std() > 0.1 * pull.mean()


@pytest.mark.parametrize('name', [*with_anchor, 'bbdm', 'cdtsde', 'abridge'])
def test_draws_start_from_the_anchor(name):
    "Another mean moves the start by as much; the anchor is asked once, and counted."
    torch.manual_seed(0)
    m = anchored_row(name)
    den = build_anchored(m, **SMALL).eval()
    y, asked = torch.randn(2, 1, 16, 16).tanh(), []
    den.anchor.register_forward_hook(lambda *a: asked.append(1))
    first = draw(m, den, y, 2)
    assert len(asked) == 1 and first.isfinite().all()
    assert calls(m, 2) == calls(m.__class__(m.about, m.bridge, **without(m)), 2) + 1
    held, mu = den.anchor.hold(den, y)
    assert isinstance(held, Anchored) and isinstance(held.bridge, Spread)
    if den.bridge.keeps_source:  # see the next test
        return
    c, inner = (b.coefs(0.5, mu)[2] for b in (held.bridge, den.bridge))
    assert torch.allclose(c, inner * held.bridge.sigma.double())
    with torch.no_grad():
        assert torch.equal(mu, den.anchor(y)[0])


@pytest.mark.parametrize('name', ['upsr', 'udbm'])
def test_noise_by_the_distance_of_source_and_mean(name):
    "The path starts from the source, shows the mean beside it, and has more noise where they differ."
    torch.manual_seed(0)
    den, y = build_anchored(name, **SMALL).eval(), torch.randn(1, 1, 16, 16).tanh()
    held, start = den.anchor.hold(den, y)
    with torch.no_grad():
        mean = den.anchor(y)[0]
    assert torch.equal(start, y) and len(held.beside) == 1 and torch.equal(held.beside[0], mean)
    noise, u = held.bridge.coefs(0.8, y)[2].flatten(), (mean - y).abs().flatten()
    assert (noise[u.argsort()].diff() >= -1e-6).all() and noise.max() > 1.1 * noise.min()
    with pytest.raises(InputError, match='anchor'):
        draw(with_anchor[name], den, y, sampler='midpoint')


def without(m):
    "Fields of a method, but for its anchor."
    return {k: v for k, v in vars(m).items() if k not in ('about', 'bridge', 'anchor')}


def test_tiles_and_weights():
    "A large picture in windows; and the anchor is a part of what is saved."
    den = build_anchored('residual', **SMALL).eval()
    y = torch.randn(1, 1, 24, 24).tanh()
    m = with_anchor['residual']
    assert draw(m, Tiled(den, 16), y).isfinite().all()
    assert torch.equal(draw(m, Tiled(den, 24), y), draw(m, den, y))
    other = build_anchored('residual', **SMALL)
    other.load_state_dict(den.state_dict())
    assert torch.equal(draw(m, other.eval(), y), draw(m, den, y))


def test_what_cannot_start_from_an_anchor_is_refused():
    den = build_anchored('residual', **SMALL)
    with pytest.raises(InputError, match='line by line'):
        SceneSampling(with_anchor['residual'], Tiled(den, 16), None, [0])
    with pytest.raises(InputError, match='slice by slice'):
        draw(with_anchor['residual'], den, torch.zeros(1, 1, 4, 8, 8))
    with pytest.raises(InputError, match='residual or i2sb'):
        build_anchored('pix2pix-mean')
    with pytest.raises(ValueError, match='scalar'):
        Anchor(kind='scaler')


@pytest.mark.parametrize('wrong', ['pix2pix', 'regression'])
def test_a_row_without_a_start_is_refused(wrong):
    for named in (
        lambda: get_method(f'{wrong}-mean'),
        lambda: plan(Job(method=wrong, anchor='mean')),
    ):
        with pytest.raises(InputError, match='cannot start from an anchor') as e:
            named()
        assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'words, said',
    [
        (dict(anchor='field'), 'unknown kind of anchor'),
        (dict(folds=3), 'method i2sb has none'),
        (dict(method='residual-mean', anchor='spread'), 'names the anchor mean, and anchor spread'),
        (dict(anchor='spread', anchor_rule='mse'), 'anchor_rule'),
        (dict(anchor='spread', folds=-1), 'folds must be 1 or more'),
        (dict(anchor='mean', backbone='latent'), 'not for latents'),
        (dict(anchor='mean', net='unet3d'), 'unet3d'),
        (dict(anchor='mean', net='ncsnpp'), 'net unet'),
        (dict(anchor='mean', context=1, plane='all'), 'plane all'),
    ],
)
def test_what_does_not_fit_an_anchor_is_refused(words, said):
    with pytest.raises(InputError, match=said) as e:
        plan(Job(**{**dict(method='i2sb', name='none-such'), **words}))
    assert '\n' not in str(e.value)


def test_a_job_names_its_row():
    p = plan(Job(method='i2sb', anchor='mean+scalar', name='none-such'))
    assert p.method == 'i2sb-scalar' and p.nfe == calls('i2sb', p.sample_steps) + 1
    assert plan(Job(method='residual', anchor='spread', name='none-such')).method == 'residual'


# --- folds


class People(torch.utils.data.Dataset):
    "Pairs of n people, two of each, whose targets say whose they are."

    def __init__(self, names, holes=False):
        self.names, self.holes = list(names), holes
        self.subjects = np.array([f'p{k}' for k in self.names for _ in range(2)])

    def __len__(self):
        return len(self.subjects)

    def __getitem__(self, i):
        gen = torch.Generator().manual_seed(self.names[i // 2] * 2 + i % 2)
        y = torch.rand(1, 16, 16, generator=gen) * 2 - 1
        return dict(y=y, x0=-0.5 * y)

    def select(self, people):
        return People([k for k in self.names if f'p{k}' in set(people)])


def test_people_are_dealt_evenly():
    table = folded.people_in_folds(People(range(12)).subjects, 5)
    assert sorted(np.bincount(list(table.values()))) == [2, 2, 2, 3, 3] and len(table) == 12
    assert folded.people_in_folds(People(range(3)).subjects, 5).keys() == {'p0', 'p1', 'p2'}
    assert len(set(folded.people_in_folds(People(range(3)).subjects, 5).values())) == 3
    assert table != folded.people_in_folds(People(range(12)).subjects, 5, seed=1)
    for few in (folded.people_in_folds(['a', 'a'], 5), folded.people_in_folds('abc', 1)):
        assert few == {}


def row_of(out, method='residual', folds=2, resume=False):
    "A row in its smallest form."
    model = dict(method=method, channels=1, net=dict(ch=8, mults=[1], layers=1))
    how = dict(device='cpu', resume=resume, anchor=folded.AnchorPlan(folds, 3))
    return RowPlan(method, model, Recipe(steps=3, batch=4, lr=1e-3, ema=0.5), out, **how)


def weights(den):
    return torch.cat([v.flatten().double() for v in den.state_dict().values()])


def learnt_from(folder):
    "The people of an anchor's training."
    state = json.loads((checkpoints(folder / 'checkpoints')[-1] / 'state.json').read_text())
    return set(state['data']['learnt'])


def test_values_come_from_an_anchor_that_has_not_seen_the_person(tmp_path, monkeypatch):
    "And the training goes on bit for bit, wherever it was ended."
    asked, forward = [], folded.Folds.forward

    def spied(self, y, side=None, ctx=None, fold=None):
        asked.append((y.clone(), fold.clone(), forward(self, y, side, ctx, fold)))
        return asked[-1][2]

    monkeypatch.setattr(folded.Folds, 'forward', spied)
    data, out = People(range(4)), tmp_path / 'run'
    got = train_row(row_of(out), data)
    monkeypatch.undo()
    table = got.log.attrs['anchor']['people']
    for k in range(2):
        assert learnt_from(out / 'anchor' / f'fold{k}') == {p for p, f in table.items() if f != k}
    assert learnt_from(out / 'anchor' / 'all') == set(table)
    whose = {float(data[i]['y'][0, 0, 0]): data.subjects[i] for i in range(len(data))}
    for y, fold, (mu, sigma) in asked:
        assert [table[whose[float(v[0, 0, 0])]] for v in y] == fold.tolist()
        assert mu.shape == sigma.shape == y.shape
    assert len(asked) == 3 + 3  # the last anchor, and the denoiser
    assert not any(p.requires_grad for p in got.den.anchor.parameters())
    assert got.log.attrs['seconds'] > 0 and got.model['anchor'] == dict(ch=8, mults=[1], layers=1)
    for ended in ('checkpoints', 'anchor/all', 'anchor/fold1'):  # as if it had been killed there
        shutil.rmtree(out / ended)
        again = train_row(row_of(out, resume=True), data)
        assert torch.equal(weights(again.den), weights(got.den)), ended
    begun = row_of(out, resume=True)
    others = {
        'folds 4: .* with 2': row_of(out, folds=4, resume=True),
        'folds 1: .* with 2': row_of(out, folds=1, resume=True),
        'anchor mean: .* with spread': row_of(out, 'residual-mean', resume=True),
        'anchor_rule crps: .* with nll': replace(begun, anchor=folded.AnchorPlan(2, 3, 'crps')),
        # a change that was named is no leave for others
        'anchor_steps 9: .* with 3': replace(
            begun, anchor=folded.AnchorPlan(2, 9), change=('steps',)
        ),
    }
    for words, row in others.items():
        with pytest.raises(InputError, match=words):
            train_row(row, data)


def test_each_image_is_answered_by_its_fold():
    class Says(torch.nn.Module):
        def __init__(self, k, ndim):
            super().__init__()
            self.k, self.ndim = float(k), ndim

        def forward(self, y, side=None, ctx=None):
            return y + self.k, torch.full(y.shape[: self.ndim], self.k)

    y, fold = torch.randn(4, 1, 3, 3), torch.tensor([2, 0, 2, 1])
    for ndim in (0, 4):
        mu, sigma = folded.Folds([Says(k, ndim) for k in range(3)])(y, fold=fold)
        want = fold[:, None, None, None].float()
        assert torch.allclose(mu, y + want) and torch.equal(sigma, want.expand_as(sigma))


def test_in_fold_the_anchor_is_asked_itself(tmp_path, capsys):
    got = train_row(row_of(tmp_path, 'i2sb-scalar', folds=1), People(range(3)))
    assert 'in fold' in capsys.readouterr().out and got.log.attrs['anchor']['folds'] == 0
    assert [q.name for q in (tmp_path / 'anchor').iterdir()] == ['all']
    got.den.eval()
    assert draw('i2sb-scalar', got.den, People([7])[0]['y'][None], 2).isfinite().all()


def test_the_spread_is_that_of_residuals_out_of_fold():
    class Off(torch.nn.Module):
        def forward(self, y, side=None, ctx=None, fold=None):
            return y + 0.3, None

    torch.manual_seed(0)
    anchor, y = Anchor(1, 'scalar', ch=8, mults=[1]), torch.randn(4, 1, 8, 8)
    opt = torch.optim.Adam(anchor.parameters(), 0.03)
    loss = folded.AnchorLoss(anchor, 'nll', Off())
    for _ in range(60):
        opt.zero_grad()
        loss(y, y, None, None, more=dict(valid=y > -1)).backward()
        opt.step()
    mu, sigma = anchor(y)
    assert abs(sigma.item() - 0.3) < 0.03 and (mu - y).square().mean().sqrt().item() < 0.3


# --- tiles, prompts, folder


class Pixels(torch.nn.Module):
    "In an anchor's UNet's place: what it says of a pixel hangs on this pixel alone."

    def forward(self, seen, t):
        first = seen[:, :1] - 0.3 * seen.mean(1, keepdim=True)
        return type('Out', (), dict(sample=torch.cat([first, first.sin()], 1)))


def by_pixel(side=0):
    "A denoiser whose two networks look at single pixels."
    den = build_anchored('residual', net=dict(SMALL['net'], side=side), anchor=SMALL['anchor'])
    den.anchor.unet = Pixels()

    class Net(torch.nn.Module):
        def forward(self, x, t, y, ctx=None, side=None):
            return (x - y + side.mean(1, keepdim=True)).tanh()

    den.net = Net()
    return den.eval()


def test_mean_and_spread_of_tiles_and_views_are_one_picture():
    den, y = by_pixel(), torch.randn(2, 1, 40, 30).tanh()
    for n in (1, 3):
        near = draw('residual', Tiled(den, 16), y, n), draw('residual', den, y, n)
        assert (near[0] - near[1]).abs().max() < 1e-5
    mu, sigma = Tiled(den, 16).anchor(y)
    assert (mu - den.anchor(y)[0]).abs().max() < 1e-6 and sigma.shape == mu.shape
    volume = torch.randn(1, 1, 4, 8, 9).tanh()
    near = [draw('residual', Views(den, planes), volume, 2) for planes in ('axial', 'coronal')]
    assert (near[0] - near[1]).abs().max() < 1e-5
    number = build_anchored('i2sb-scalar', **SMALL).eval()
    assert Tiled(number, 8).anchor(y[:1])[1].ndim == 0
    assert draw('i2sb-scalar', Views(number), volume, 2).shape == volume.shape


def test_an_item_is_the_same_in_every_batch():
    den, y = build_anchored('residual', **SMALL).eval(), torch.randn(3, 1, 16, 16).tanh()
    all_, one = draw('residual', den, y, seeds=[4, 5, 6]), draw('residual', den, y[2:], seeds=[6])
    assert (all_[2:] - one).abs().max() < 1e-5


def test_an_anchor_is_told_what_is_asked_for():
    net = dict(SMALL['net'], text=5, by='both')
    den = build_anchored('i2sb-mean', net=net, anchor=SMALL['anchor']).eval()
    for p in den.parameters():
        torch.nn.init.normal_(p, std=0.2)
    y, ctx = torch.randn(1, 1, 16, 16), torch.randn(2, 1, 3, 5)
    a, b = (den.anchor.hold(den, y, c)[1] for c in ctx)
    assert (a - b).abs().max() > 1e-3
    assert torch.equal(Tiled(den, 16).anchor.hold(den, y, ctx[0])[1], a)
    assert draw('i2sb-mean', den, y, 2, ctx=ctx[0]).isfinite().all()


def test_a_model_folder_holds_the_anchor(tmp_path):
    spec = dict(method='i2sb-spread', channels=1, net=SMALL['net'], anchor=SMALL['anchor'])
    den, folder = build_anchored(**spec).eval(), tmp_path / 'm'
    save_model(folder, den, spec, VOLUME)
    y = torch.randn(1, 1, 16, 16)
    got, _, (model, _) = open_model(folder)
    assert model.anchor == SMALL['anchor'] and model.method == 'i2sb-spread'
    assert torch.equal(draw(model.method, got, y), draw(model.method, den, y))
    config = json.loads((folder / 'config.json').read_text())
    for wrong, said in (
        (dict(ch=16, mults=[1]), 'do not belong'),
        (dict(ch=10**9), 'model.anchor.ch'),
        (dict(wide=3), 'do not fit an anchor'),
        (7, 'model.anchor must be an object'),
    ):
        config['model']['anchor'] = wrong
        (folder / 'config.json').write_text(json.dumps(config))
        with pytest.raises(InputError, match=said) as e:
            load_model(folder)
        assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', [*with_anchor, 'ensemble-spread', 'i2sb-spread'])
def test_a_table_holds_what_the_bridge_says_at_each_time(name):
    y, sigma = torch.rand(2, 2, 1, 4, 4)
    held = Spread(get_method(name).bridge(1), sigma).eval()
    grid = torch.tensor([1.0, 0.6, 0.2])
    with torch.no_grad():
        table = held.table(grid, y)
    for t, at in zip(grid.double(), table):
        for got, wanted in zip(at, held.coefs(t, y)):
            assert torch.allclose(got.expand_as(y), wanted.expand_as(y).to(got.dtype), atol=1e-9)
